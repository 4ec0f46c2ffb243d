"""Rows → corrupted texts, packed for the model; runs in the data loader's workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...data.document_batches import DocumentRow
from ...diffusion.batch import pack_noisy_texts
from ...diffusion.corruption import Corruption, NoiseDraws, hide_tokens
from ...diffusion.noisy_texts import NoisyText, hideable_tokens, noise_units, noisy_text
from ...diffusion.objective import loss_terms
from ...diffusion.schedules import SCHEDULES
from ...diffusion.texts import Text, TextsOfRows
from ...hparams.ddm import DiffusionOptions
from ...model.token_predictor import NO_LABEL


class DiffusionCollator:
    """Hides tokens by draws that belong to the rows. The loss of a step is the weighted sum of its cross entropies,
    divided by the sum of its `divisor`."""

    def __init__(
        self,
        texts_of_rows: TextsOfRows,
        options: DiffusionOptions,
        *,
        draws: NoiseDraws,
        mask_token_id: int,
        shift: bool,
        max_tokens: int,
    ) -> None:
        self.texts_of_rows = texts_of_rows
        self.options = options
        self.schedule = SCHEDULES[options.noise_schedule]
        self.draws = draws
        self.mask_token_id = mask_token_id
        self.shift = shift
        self.max_tokens = max_tokens

    def __call__(self, rows: Sequence[DocumentRow]) -> dict[str, Any]:
        noisy: list[NoisyText] = []
        for row, texts in zip(rows, self.texts_of_rows(rows), strict=True):
            noisy += self._corrupt(row, texts)
        terms = [
            loss_terms(
                text.times,
                text.labels != NO_LABEL,
                text.scorable,
                schedule=self.schedule,
                weight=self.options.loss_weight,
                norm=self.options.loss_norm,
            )
            for text in noisy
        ]
        batches = pack_noisy_texts(noisy, [term.coefficients for term in terms], self.max_tokens)
        return {
            "input_ids": torch.cat([text.token_ids for text in noisy]),  # what the Trainer counts tokens by
            "batches": batches,
            "divisor": torch.tensor(sum(term.count for term in terms)),
        }

    def _corrupt(self, row: DocumentRow, texts: Sequence[Text]) -> list[NoisyText]:
        units, numbers = 0, []
        for text in texts:
            numbers.append(units + noise_units(len(text), self.options.block_size))
            units = int(numbers[-1][-1]) + 1
        times, uniforms = self.draws.draw(row.epoch, row.place, torch.cat(numbers))
        lengths = [len(text) for text in texts]
        found = []
        for text, own_times, own_uniforms in zip(texts, times.split(lengths), uniforms.split(lengths), strict=True):
            clean = torch.tensor(text.token_ids)
            hideable = hideable_tokens(text) if not row.is_filler else torch.zeros(len(text), dtype=torch.bool)
            corruption: Corruption = hide_tokens(
                clean, hideable, own_times, own_uniforms, self.schedule, self.mask_token_id
            )
            found.append(noisy_text(clean, hideable, corruption, shift=self.shift, block_size=self.options.block_size))
        return found
