"""What is hidden from the towers: how much, where, never the wrong thing, always the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from costream.errors import ConfigError
from costream.objectives.masking import block_mask, mask_words

SPECIAL = (0, 100, 101, 102, 103)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words(batch: int = 64, length: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of the form [CLS] words [SEP] padding, of all lengths."""
    ids = torch.randint(200, 1000, (batch, length), generator=seeded(9))
    real = torch.randint(2, length + 1, (batch,), generator=seeded(8))
    mask = torch.arange(length)[None] < real[:, None]
    ids[:, 0] = 101
    ids[torch.arange(batch), real - 1] = 102
    return torch.where(mask, ids, 0), mask


def hide(ids: torch.Tensor, mask: torch.Tensor, seed: int = 0, share: float = 0.15):
    return mask_words(
        ids,
        mask,
        share=share,
        mask_id=103,
        vocab_size=1000,
        special_ids=SPECIAL,
        generator=seeded(seed),
    )


@pytest.mark.parametrize(
    ("rows", "columns", "share"),
    [(6, 6, 0.4), (24, 24, 0.4), (3, 3, 0.4), (1, 7, 0.5), (7, 1, 0.5), (2, 2, 1.0), (5, 4, 0.99)],
)
def test_every_item_has_exactly_its_share(rows: int, columns: int, share: float) -> None:
    mask = block_mask(40, rows, columns, share=share, generator=seeded())
    assert mask.shape == (40, rows * columns) and mask.dtype == torch.bool
    assert set(mask.sum(dim=1).tolist()) == {int(share * rows * columns)}


def test_without_exact_there_are_never_more_and_rarely_fewer() -> None:
    counts = block_mask(300, 14, 14, smallest=16, exact=False, generator=seeded()).sum(dim=1)
    assert int(counts.max()) <= int(0.4 * 196)
    assert counts.float().mean() > 0.85 * int(0.4 * 196)


def test_share_survives_rounding_of_floats() -> None:
    assert block_mask(1, 10, 10, share=0.29, generator=seeded()).sum() == 29


def test_masks_come_in_blocks() -> None:
    """A hidden patch has far more hidden neighbours than under independent masking."""
    grid = block_mask(200, 12, 12, generator=seeded()).view(200, 12, 12)
    both = (grid[:, :, 1:] & grid[:, :, :-1]).float().mean()
    assert both > 1.4 * 0.4**2


def test_every_patch_is_hidden_sometimes() -> None:
    """Corners least: fewer rectangles reach them."""
    share = block_mask(1000, 6, 6, generator=seeded()).float().mean(dim=0)
    assert share.min() > 0.1 and share.max() < 0.7


def test_items_differ_and_the_generator_decides() -> None:
    first, again = (block_mask(8, 6, 6, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, block_mask(8, 6, 6, generator=seeded(4)))
    assert len({tuple(row.tolist()) for row in first}) > 4


def test_a_stored_generator_continues_bit_for_bit() -> None:
    generator = seeded()
    block_mask(4, 6, 6, generator=generator)
    state = generator.get_state()
    expected = block_mask(4, 6, 6, generator=generator)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(block_mask(4, 6, 6, generator=resumed), expected)


def test_an_item_does_not_depend_on_the_others() -> None:
    """Nor does the mask of a batch's first items change with the size of the batch."""
    assert torch.equal(
        block_mask(3, 6, 6, generator=seeded()), block_mask(9, 6, 6, generator=seeded())[:3]
    )


@pytest.mark.parametrize(("batch", "rows", "columns"), [(0, 6, 6), (3, 0, 6), (3, 6, 0)])
def test_nothing_to_mask(batch: int, rows: int, columns: int) -> None:
    mask = block_mask(batch, rows, columns, generator=seeded())
    assert mask.shape == (batch, rows * columns) and not mask.any()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        block_mask(1, 6, 6, share=share, generator=seeded())
    with pytest.raises(ConfigError, match="share"):
        hide(*words(), share=share)
    with pytest.raises(ConfigError, match="smallest"):
        block_mask(1, 6, 6, smallest=0, generator=seeded())


def test_special_tokens_and_padding_are_never_touched() -> None:
    ids, mask = words()
    for share in (0.15, 1.0):
        masked, targets = hide(ids, mask, share=share)
        special = torch.isin(ids, torch.tensor(SPECIAL)) | ~mask
        assert not (targets & special).any()
        assert torch.equal(masked[~targets], ids[~targets])


def test_padding_is_known_by_the_mask_not_by_the_token() -> None:
    ids = torch.full((4, 6), 500)
    mask = torch.arange(6)[None].expand(4, 6) < 2
    _, targets = hide(ids, mask, share=1.0)
    assert torch.equal(targets, mask)


def test_shares_over_many_draws() -> None:
    """15 % targets; of these 80 % the mask, 10 % another ordinary word, 10 % themselves."""
    ids, mask = torch.full((500, 100), 500), torch.ones(500, 100, dtype=torch.int64)
    masked, targets = hide(ids, mask)
    count = int(targets.sum())
    assert targets.float().mean() == pytest.approx(0.15, abs=0.01)
    assert int((masked[targets] == 103).sum()) / count == pytest.approx(0.8, abs=0.02)
    assert int((masked[targets] == 500).sum()) / count == pytest.approx(0.1, abs=0.02)
    drawn = masked[targets & (masked != 103) & (masked != 500)]
    assert len(drawn) / count == pytest.approx(0.1, abs=0.02)
    assert not np.isin(drawn.numpy(), SPECIAL).any()
    assert int(drawn.max()) < 1000 and int(drawn.min()) >= 1


def test_words_are_deterministic_and_leave_their_input_alone() -> None:
    ids, mask = words()
    before = ids.clone()
    first, again, other = hide(ids, mask, 1), hide(ids, mask, 1), hide(ids, mask, 2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(ids, before)


def test_the_generator_moves_by_the_shape_alone() -> None:
    states = []
    for value in (101, 500):
        generator = seeded()
        mask_words(
            torch.full((3, 5), value),
            torch.ones(3, 5),
            mask_id=103,
            vocab_size=1000,
            special_ids=SPECIAL,
            generator=generator,
        )
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])


def test_padding_does_not_change_which_words_are_hidden() -> None:
    """A process pads to its own longest text, and hides what one process for all would hide."""
    ids, mask = words(batch=4)
    padded = torch.nn.functional.pad(ids, (0, 7)), torch.nn.functional.pad(mask, (0, 7))
    for seed in range(20):
        short, long = hide(ids, mask, seed, share=0.5), hide(*padded, seed, share=0.5)
        assert torch.equal(long[0][:, :20], short[0]) and torch.equal(long[1][:, :20], short[1])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_no_words(shape: tuple[int, int]) -> None:
    masked, targets = hide(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape))
    assert masked.shape == targets.shape == shape and not targets.any()


def test_a_vocabulary_of_special_tokens_only_is_refused() -> None:
    with pytest.raises(ConfigError, match="ordinary"):
        mask_words(
            torch.zeros(1, 1, dtype=torch.int64),
            torch.ones(1, 1),
            mask_id=0,
            vocab_size=2,
            special_ids=(0, 1),
            generator=seeded(),
        )
