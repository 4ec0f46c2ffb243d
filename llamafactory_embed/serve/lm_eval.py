"""`lm_eval --model ddm`: diffusion language models in EleutherAI's evaluation harness.

    lm_eval --model ddm --model_args pretrained=saves/my_model,diffusion_steps=128 --tasks gsm8k

`model_args` are `pretrained`, `mask_token`, `shift`, `block_size`, `dtype`, `monte_carlo_samples`, `score`,
`max_length`, `max_new_tokens`, and the options of docs/sampling.md by their names. A log-likelihood is the evidence
lower bound, estimated with the same draws for every request, so that the answers to a question are compared under the
same masks. With `score=mean_loss` the answers to a question are compared by the mean cross entropy of their hidden
tokens instead, as DiffuLLaMA's evaluation does; it is no likelihood, and texts are scored by the bound even so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm.auto import tqdm

from ..data.tokenization import find_special_tokens
from ..diffusion.blocks import block_mask
from ..diffusion.bound import evaluation_corruptions
from ..diffusion.texts import Text
from ..hparams.option import make_options
from ..hparams.sampling import SamplingOptions
from ..loading.checkpoint import load_diffusion_model
from ..loading.masked_tokens import MaskedTokenRequest
from ..model.packed import tokens_per_batch
from ..model.token_predictor import TokenPredictor, pack_corrupted_texts
from ..sampling.checkpoint import make_sampler
from ..sampling.settings import SamplingSettings
from .texts import cut_at, stop_strings


SCORES = ("bound", "mean_loss")


class DiffusionHarnessModel(TemplateLM):
    """A diffusion language model as the harness asks it."""

    def __init__(
        self,
        pretrained: str,
        *,
        mask_token: str | None = None,
        shift: bool | None = None,
        block_size: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        monte_carlo_samples: int = 32,
        score: str = "bound",
        max_length: int = 2048,
        max_new_tokens: int = 256,
        seed: int = 42,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size or 1).isdigit():
            raise ValueError(f"`batch_size` must be a number, not {batch_size!r}.")
        if score not in SCORES:
            raise ValueError(f"`model_args`: `score` must be {' or '.join(SCORES)}, not {score!r}.")
        defaults = {field.name: field.default for field in dataclasses.fields(SamplingOptions)}
        unknown = set(options) - set(defaults)
        if unknown:
            raise ValueError(f"`model_args`: {', '.join(sorted(unknown))} is no option of docs/sampling.md.")
        sampling = make_options(SamplingOptions, defaults | options)
        if block_size is not None and block_size < 0:
            raise ValueError(f"`model_args`: `block_size` must be at least 0, not {block_size}.")
        request = MaskedTokenRequest(mask_token, shift, block_size=block_size)
        loaded = load_diffusion_model(pretrained, request, device=device, dtype=dtype)
        self.block_size = loaded.settings.block_size
        greedy = SimpleNamespace(max_new_tokens=max_new_tokens, do_sample=False)
        self.sampler = make_sampler(
            loaded,
            SamplingSettings.from_options(
                sampling, greedy, family=loaded.family, block_size=self.block_size, seed=seed
            ),
        )
        self.predictor = TokenPredictor(
            self.sampler.model, shift=self.sampler.shift, sliding_window=self.sampler.sliding_window
        ).eval()
        self.tokenizer: Any = self.sampler.tokenizer
        self.leading = list(find_special_tokens(self.tokenizer, append_eos=False).leading)
        self.pretrained = pretrained
        self.rows_per_batch = int(batch_size or 1)
        self.samples = monte_carlo_samples
        self.score = score
        self.max_length = max_length

    # ------------------------------------------------- tokens and texts ----------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.pretrained.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text after what the tokenizer begins texts with, unless a chat template has put it there."""
        body = self.tokenizer(string, add_special_tokens=False)["input_ids"]
        if add_special_tokens is False or body[: len(self.leading)] == self.leading:
            return body
        return [*self.leading, *body]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # -------------------------------------------------- log-likelihoods ----------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        answers = []
        for _, context, continuation in tqdm(requests, desc="Log-likelihoods", disable=disable_tqdm):
            too_many = len(context) + len(continuation) - self.max_length
            given = context[max(0, min(too_many, len(context) - 1)) :]  # at least one token, to predict the next from
            score = self.lower_bound if self.score == "bound" else self.negative_mean_loss
            answers.append((score(given, continuation), self.is_greedy(given, continuation)))
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        sums = []
        for request in tqdm(requests, desc="Texts", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = map(make_disjoint_window, windows)
            sums.append(sum(self.lower_bound(context, continuation) for context, continuation in pairs))
        return sums

    def lower_bound(self, context: Sequence[int], continuation: Sequence[int]) -> float:
        """A lower bound of log p(continuation | context), up to the error of the estimate."""
        losses, weights = self._losses(context, continuation)
        return -float((losses * weights).sum())

    def negative_mean_loss(self, context: Sequence[int], continuation: Sequence[int]) -> float:
        """The mean cross entropy of all tokens that any of the draws hides, each counting 1, below zero so that the
        likelier continuation has the larger score."""
        losses, _ = self._losses(context, continuation)
        return -float(losses.mean())

    @torch.inference_mode()
    def _losses(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross entropies of the hidden tokens of all draws, and what each counts in the bound, [N] both."""
        tokens = [*context, *continuation]
        text = Text(tokens, [index < len(context) for index in range(len(tokens))])
        shift = self.sampler.shift
        corruptions = evaluation_corruptions(
            text, (0,), self.samples, mask_token_id=self.sampler.mask_token, shift=shift, block_size=self.block_size
        )
        slots = max(map(len, corruptions))
        batches = pack_corrupted_texts(
            corruptions,
            tokens_per_batch(None, self.predictor.device),
            allowed=None if self.block_size is None else block_mask(slots, self.block_size, self.predictor.device),
        )
        losses = self.predictor(batches).losses
        return losses, torch.cat([batch.scored_weights(shift) for batch in batches]).to(losses)

    def is_greedy(self, context: Sequence[int], continuation: Sequence[int]) -> bool:
        """Whether revealing the most confident token, one after the other, gives the continuation."""
        # The steps are shared out among the blocks, each of which may be as wide as the continuation.
        blocks = 1 if self.block_size is None else len(continuation) // self.block_size + 2
        settings = SamplingSettings(
            steps=len(continuation) * blocks, algorithm="low_confidence", block_size=self.block_size
        )
        holes = [False] * len(context) + [True] * len(continuation)
        (filled,) = self.sampler.fill([[*context, *continuation]], [holes], settings=settings)
        return filled.tokens == list(continuation)

    # ---------------------------------------------------- generation -------------------------------------------------

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers: list[str] = [""] * len(requests)
        with tqdm(total=len(requests), desc="Texts", disable=disable_tqdm) as progress:
            for settings, numbers in self._same_settings(requests).items():
                for start in range(0, len(numbers), self.rows_per_batch):
                    batch = numbers[start : start + self.rows_per_batch]
                    for number, answer in zip(batch, self._generate(requests, batch, settings), strict=True):
                        answers[number] = answer
                        self.cache_hook.add_partial("generate_until", requests[number].args, answer)
                    progress.update(len(batch))
        return answers

    def _generate(self, requests: Sequence[Any], batch: Sequence[int], settings: SamplingSettings) -> list[str]:
        """The answers to the requests with these numbers. Of a prompt that is too long, the end counts."""
        room = self.max_length - settings.max_new_tokens
        if room < 1:
            raise ValueError(
                f"`max_length: {self.max_length}` leaves no room for a prompt before {settings.max_new_tokens} new "
                "tokens: raise it in `model_args`."
            )
        prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in batch]
        generated = self.sampler.complete(prompts, batch, settings=settings)
        stops = [stop_strings(requests[number].args[1].get("until")) for number in batch]
        return [cut_at(self.sampler.decode(each.tokens), ends) for each, ends in zip(generated, stops, strict=True)]

    def _same_settings(self, requests: Sequence[Any]) -> dict[SamplingSettings, list[int]]:
        """The numbers of requests that can share a batch, by their settings."""
        groups: dict[SamplingSettings, list[int]] = {}
        for number, request in enumerate(requests):
            generation = dict(request.args[1])
            if "max_gen_toks" in generation:
                generation["max_new_tokens"] = generation["max_gen_toks"]
            groups.setdefault(self.sampler.settings.with_generation(generation), []).append(number)
        return groups
