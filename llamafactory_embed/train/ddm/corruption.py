"""Which tokens `stage: ddm` and `ddm-sft` hide, and what they count, as the recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.document_batches import DocumentRow
from ...diffusion.batches import CorruptedRow
from ...diffusion.noise import SCHEDULES, NoiseDraws, hide_tokens
from ...diffusion.noisy_texts import hideable_tokens, noise_units, noisy_text, weigh_text
from ...diffusion.texts import Text
from ...hparams.ddm import DiffusionOptions
from ...model.token_predictor import CorruptedText


@dataclass(frozen=True)
class DiffusionCorruption:
    """Hides tokens at the times that a row draws; called by the collator."""

    options: DiffusionOptions
    draws: NoiseDraws
    mask_token_id: int
    shift: bool

    def __call__(self, row: DocumentRow, texts: Sequence[Text]) -> CorruptedRow:
        numbers, units = [], 0
        for text in texts:
            numbers.append(units + noise_units(len(text), self.options.block_size))
            units = int(numbers[-1][-1]) + 1
        times, uniforms = self.draws.draw(row.epoch, row.place, torch.cat(numbers))
        lengths = [len(text) for text in texts]
        parts = zip(texts, times.split(lengths), uniforms.split(lengths), strict=True)
        corrupted = [self._corrupt(*part) for part in parts]
        return CorruptedRow([text for text, _ in corrupted], loss_count=sum(count for _, count in corrupted))

    def _corrupt(self, text: Text, times: Tensor, uniforms: Tensor) -> tuple[CorruptedText, float]:
        """One text [L] as the model reads it [M], and what it adds to the loss count."""
        schedule = SCHEDULES[self.options.noise_schedule]
        hideable = hideable_tokens(text)
        noisy = noisy_text(
            torch.tensor(text.token_ids),
            hide_tokens(hideable, times, uniforms, schedule),
            mask_token_id=self.mask_token_id,
            shift=self.shift,
            block_size=self.options.block_size,
        )
        return weigh_text(
            noisy,
            times,
            hideable,
            shift=self.shift,
            schedule=schedule,
            weight=self.options.loss_weight,
            norm=self.options.loss_norm,
        )
