"""Laws of the temperature: it multiplies by its inverse, trains, and stays in its range."""

from __future__ import annotations

import pytest
import torch

from costream.objectives.temperature import Temperature


def test_the_gradient_is_that_of_the_inverse_in_log_form() -> None:
    """d(1/T) / d(log T) = -1/T."""
    temperature = Temperature(0.05)
    temperature.inverse().backward()
    assert float(temperature.value()) == pytest.approx(0.05)
    assert float(temperature.inverse().detach()) == pytest.approx(20.0)
    assert float(temperature.log.grad or 0) == pytest.approx(-20.0)


@pytest.mark.parametrize(("wild", "kept"), [(-50.0, 0.01), (50.0, 0.5), (-2.0, None)])
def test_it_is_brought_back_into_its_range(wild: float, kept: float | None) -> None:
    temperature = Temperature(0.1, least=0.01, greatest=0.5)
    temperature.log.data.fill_(wild)
    temperature.clamp()
    want = torch.tensor(wild).exp() if kept is None else kept
    assert float(temperature.value()) == pytest.approx(float(want))


def test_without_a_range_it_is_free_and_a_fixed_one_stays_outside_of_it() -> None:
    free = Temperature(0.1)
    free.log.data.fill_(-30.0)
    free.clamp()
    assert float(free.log) == -30.0
    fixed = Temperature(2.0, least=0.01, greatest=0.5, trains=False)
    fixed.clamp()
    assert float(fixed.value()) == pytest.approx(2.0)
    assert not fixed.log.requires_grad
