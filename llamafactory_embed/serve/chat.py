"""The engine of `llamafactory-cli chat`, `webchat` and `api` for `stage: ddm` and `ddm-sft`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llamafactory.chat.base_engine import BaseEngine, Response
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras.constants import EngineName

from ..diffusion.texts import DiffuSeqTokens, diffuseq_tokens, split_digits
from ..host.chat import DenoisingEngine
from ..hparams.ddm import DiffusionOptions, DiffusionTuningOptions
from ..loading.adapted_checkpoint import start_from_checkpoint
from ..loading.predictor import choose_template, load_token_predictor, set_up_masked_tokens
from ..loading.start import resolve_start
from ..model.families import find_family
from ..sampling.sampler import Generated, Sampler
from ..sampling.settings import SamplingSettings
from .steps import denoising_steps
from .texts import StreamedAnswer, cut_at, stop_strings


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments


@dataclass(frozen=True)
class NoTraining:
    """The `training_args` of a run that only serves, as far as the loaders read them."""

    output_dir: str  # for converted checkpoints
    do_train: bool = False
    process_index: int = 0

    @contextlib.contextmanager
    def main_process_first(self, local: bool = True, desc: str = "") -> Iterator[None]:
        yield


class DiffusionEngine(DenoisingEngine, BaseEngine):
    """Answers by denoising. The answers of a session are numbered, and each draws other random numbers."""

    def __init__(
        self,
        model_args: ModelArguments,
        data_args: DataArguments,
        finetuning_args: FinetuningArguments,
        generating_args: GeneratingArguments,
    ) -> None:
        options: DiffusionOptions = finetuning_args.stage_options
        self._converted = tempfile.TemporaryDirectory()
        no_training = NoTraining(self._converted.name)
        model_args = resolve_start(model_args, finetuning_args, no_training)
        model_args = start_from_checkpoint(model_args, options.checkpoint_dir, no_training)
        setup = set_up_masked_tokens(options, model_args, otherwise="mask")
        options = replace(options, block_size=setup.block_size)
        family = find_family(setup.config)
        self.options: DiffusionOptions = options
        self._family = family
        self._generating_args = generating_args
        self.tokenizer: Any = setup.tokenizer
        if isinstance(options, DiffusionTuningOptions):
            data_args.template = choose_template(options, family, data_args.template, self.tokenizer)
            if options.ddm_split_digits:
                split_digits(self.tokenizer)
        self.template: Any = get_template_and_fix_tokenizer(self.tokenizer, data_args)
        self.diffuseq: DiffuSeqTokens | None = None
        if isinstance(options, DiffusionTuningOptions) and options.ddm_format == "diffuseq":
            self.diffuseq = diffuseq_tokens(self.tokenizer, options.ddm_separator, options.ddm_padding)
        predictor, _ = load_token_predictor(setup, model_args, finetuning_args, no_training)

        self.name = EngineName.HF
        self.can_generate = True
        self.model: Any = predictor.backbone.eval()
        self.generating_args: dict[str, Any] = generating_args.to_dict()
        self.sampler = Sampler(
            self.model,
            self.tokenizer,
            self._read(options),
            setup.mask.id,
            setup.shift,
            tuple(self.template.get_stop_token_ids(self.tokenizer)),
            setup.sliding_window,
        )
        self.answers = 0
        self.semaphore = asyncio.Semaphore(int(os.getenv("MAX_CONCURRENT", "1")))

    async def chat(
        self,
        messages: list[dict[str, str]],
        system: str | None = None,
        tools: str | None = None,
        images: object = None,
        videos: object = None,
        audios: object = None,
        **input_kwargs: Any,
    ) -> list[Response]:
        self._refuse_media(images, videos, audios)
        prompt = self.encode_prompt(messages, system, tools)
        count = input_kwargs.get("num_return_sequences") or 1
        settings = self._settings(input_kwargs)
        async with self.semaphore:
            numbers = self._numbers(count, input_kwargs)
            generated = await asyncio.to_thread(self.sampler.complete, [prompt] * count, numbers, settings=settings)
        skip, stops = self._skips_special_tokens(input_kwargs), stop_strings(input_kwargs.get("stop"))
        return [self._response(each, len(prompt), skip, stops) for each in generated]

    async def stream_chat(
        self,
        messages: list[dict[str, str]],
        system: str | None = None,
        tools: str | None = None,
        images: object = None,
        videos: object = None,
        audios: object = None,
        *,
        whole_texts: bool = False,
        **input_kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """The answer as it settles: its beginning, piece by piece, as far as it is final; or, with `whole_texts`, the
        whole answer after each step, with ░ for what is masked."""
        self._refuse_media(images, videos, audios)
        prompt = self.encode_prompt(messages, system, tools)
        skip, stops = self._skips_special_tokens(input_kwargs), stop_strings(input_kwargs.get("stop"))
        answer = StreamedAnswer(self.sampler, stops, skip)
        async with self.semaphore:
            (number,) = self._numbers(1, input_kwargs)
            steps = denoising_steps(self.sampler, prompt, number, self._settings(input_kwargs))
            async with contextlib.aclosing(steps):
                async for step in steps:
                    if whole_texts:
                        masked = [token is None for token in step.tokens]
                        shown = self.sampler.show([token or 0 for token in step.tokens], masked, skip)
                        yield cut_at(shown, stops)
                    elif piece := answer.next_piece(step.settled, step.is_finished):
                        yield piece

    def change_sampling(self, **values: Any) -> None:
        """Denoise the next answers with other values of `SamplingOptions`."""
        options = replace(self.options, **values)
        self.sampler.settings = self._read(options)
        self.options = options

    async def get_scores(self, batch_input: list[str], **input_kwargs: Any) -> list[float]:
        raise ValueError("A diffusion language model answers, it does not score: use a reward model.")

    def encode_prompt(self, messages: list[dict[str, str]], system: str | None, tools: str | None) -> list[int]:
        """A conversation as in training, up to the answer that is to be written."""
        answered = [*messages, {"role": "assistant", "content": ""}]
        prompt, _ = self.template.encode_oneturn(self.tokenizer, answered, system, tools)
        if self.diffuseq is None:
            return list(prompt)
        return [self.diffuseq.bos, *prompt, self.diffuseq.sep]

    # ------------------------------------------------- one request --------------------------------------------------

    def _read(self, options: DiffusionOptions) -> SamplingSettings:
        return SamplingSettings.from_options(
            options, self._generating_args, family=self._family, block_size=options.block_size
        )

    def _response(self, generated: Generated, prompt_length: int, skip: bool, stops: list[str]) -> Response:
        text = self.sampler.decode(generated.tokens, skip)
        answer = cut_at(text, stops)
        return Response(
            response_text=answer,
            response_length=len(generated.tokens) + generated.ended,
            prompt_length=prompt_length,
            finish_reason="stop" if generated.ended or answer != text else "length",
        )

    def _settings(self, input_kwargs: dict[str, Any]) -> SamplingSettings:
        """The settings of a request, by the names of the host's interfaces."""
        request = {name: value for name, value in input_kwargs.items() if value is not None}
        if request.get("max_length") and not request.get("max_new_tokens"):
            request["max_new_tokens"] = request["max_length"]
        if request.get("do_sample") is None and self.generating_args["do_sample"] is False:
            request["do_sample"] = False
        if request.get("num_return_sequences", 1) > 1:  # several equal answers would be useless
            request["do_sample"] = True
            request["temperature"] = request.get("temperature") or self.sampler.settings.temperature or 1.0
        return self.sampler.settings.with_generation(request)

    def _skips_special_tokens(self, input_kwargs: dict[str, Any]) -> bool:
        requested = input_kwargs.get("skip_special_tokens")
        return bool(self.generating_args["skip_special_tokens"] if requested is None else requested)

    def _numbers(self, count: int, input_kwargs: dict[str, Any]) -> range:
        """The numbers of the next answers; they decide which random numbers are drawn. Requests that name the same
        `seed` get the same answer."""
        if input_kwargs.get("seed") is not None:
            return range(count)
        first, self.answers = self.answers, self.answers + count
        return range(first, first + count)

    def _refuse_media(self, *media: Any) -> None:
        if any(media):
            raise ValueError("A diffusion language model reads text only: leave images, videos and audios out.")
