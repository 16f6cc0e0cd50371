"""Learning the names of things from a classifier that knows them.

A classifier's opinion of a picture, spread over its class names, is supervision for the joint
space that needs no caption: the picture's similarity to the names' texts should be distributed as
the classifier's probabilities are. It keeps a small captioned set from narrowing the space to what
its captions talk about.

Source: distillation (Hinton, Vinyals and Dean, 2015) with the text tower as the classifier's head,
as zero-shot classification uses it (Radford et al., 2021). The subset of names a step is ours.

Shape letters: B pictures, C classes, S classes of a step, T tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.dual import DualEncoder
from costream.errors import ConfigError
from costream.objectives import Losses, Objective
from costream.objectives.gather import gather_rows, mean_across
from costream.records import Batch, Features


class NamesObjective(nn.Module, Objective):
    """Cross-entropy between a classifier's probabilities and similarities to class names.

    Args:
        probabilities: float (G, C), the classifier's opinion of the picture of each group.
        name_ids: int64 (P, C, T), token ids of each class name in each of P phrasings.
        name_mask: int64 (P, C, T), 1 where a token is real.
        classes_a_step: Names embedded a step: the likeliest of the batch's pictures, then others at
            random.
        temperature: Divides the similarities.

    Raises:
        ConfigError: When the tables do not fit each other, or a number is not above 0.
    """

    def __init__(
        self,
        probabilities: Tensor,
        name_ids: Tensor,
        name_mask: Tensor,
        *,
        classes_a_step: int = 64,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        fits = name_ids.shape == name_mask.shape and name_ids.ndim == 3
        if not fits or name_ids.shape[1] != probabilities.shape[1]:
            raise ConfigError(
                f"got probabilities {tuple(probabilities.shape)}, ids {tuple(name_ids.shape)} and "
                f"mask {tuple(name_mask.shape)}, expected (G, C) and twice (P, C, T)"
            )
        if classes_a_step < 1 or temperature <= 0:
            raise ConfigError(f"got {classes_a_step=} and {temperature=}, expected above 0")
        self.classes_a_step, self.temperature = classes_a_step, temperature
        self.probabilities: Tensor
        self.name_ids: Tensor
        self.name_mask: Tensor
        self.register_buffer("probabilities", probabilities, persistent=False)
        self.register_buffer("name_ids", name_ids, persistent=False)
        self.register_buffer("name_mask", name_mask, persistent=False)

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """Cross-entropy over this step's classes, the classifier's probabilities renormalised."""
        target_BC = self.probabilities[batch.groups]
        # Of the first row of all processes, so that all of them draw the same names.
        generator = torch.Generator().manual_seed(int(gather_rows(batch.seeds)[0]) + 2)
        trusted_B = (batch.weight > 0).to(target_BC.dtype)
        classes_S = self._classes_of_step(target_BC * trusted_B[:, None], generator)
        phrasing = int(torch.randint(len(self.name_ids), (), generator=generator))
        mask_ST = self.name_mask[phrasing, classes_S]
        longest = int(mask_ST.sum(dim=1).max())
        names_SD = model.embed_tokens(
            self.name_ids[phrasing, classes_S, :longest], mask_ST[:, :longest]
        )
        target_BS = target_BC[:, classes_S]
        mass_B = target_BS.sum(dim=1)
        target_BS = target_BS / mass_B.clamp_min(1e-6)[:, None]
        with torch.autocast(names_SD.device.type, enabled=False):
            scores_BS = features["image"].pooled @ names_SD.T / self.temperature
        rows_B = -(target_BS * functional.log_softmax(scores_BS, dim=1)).sum(dim=1)
        # A picture whose likely classes are not among this step's says little.
        value = mean_across(rows_B, batch.weight * mass_B)
        return Losses(total=value, parts={"names": value.detach()})

    def _classes_of_step(self, target_BC: Tensor, generator: torch.Generator) -> Tensor:
        count = min(self.classes_a_step, target_BC.shape[1])
        noise_C = torch.rand(target_BC.shape[1], generator=generator).to(target_BC.device)
        # Likeliest over the batch first; the noise decides among those that nobody sees.
        likeliest_C = gather_rows(target_BC.amax(dim=0, keepdim=True)).amax(dim=0)
        return (likeliest_C + 0.05 * noise_C).topk(count).indices
