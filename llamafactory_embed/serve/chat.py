"""The engine behind `llamafactory-cli chat`, `webchat` and `api` for `stage: ddm` and `ddm-sft`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import tempfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any

from llamafactory.chat.base_engine import BaseEngine, Response
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras.constants import EngineName

from ..diffusion.texts import diffuseq_tokens
from ..host.chat import DenoisingEngine
from ..hparams.ddm import DiffusionOptions, DiffusionTuningOptions
from ..loading.adapted_checkpoint import start_from_checkpoint
from ..loading.predictor import choose_template, load_token_predictor, set_up_masked_tokens
from ..model.families import find_family
from ..sampling.loop import Frame
from ..sampling.sampler import Generated, Sampler
from ..sampling.settings import SamplingSettings
from ..sampling.stops import cut_at, stop_strings, without_begun_stop


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments


@dataclass(frozen=True)
class NoTraining:
    """What the loaders of a training run ask their `training_args`, where there is none."""

    output_dir: str  # for converted checkpoints
    do_train: bool = False
    process_index: int = 0

    @contextlib.contextmanager
    def main_process_first(self, local: bool = True, desc: str = "") -> Iterator[None]:
        yield


class StoppedError(Exception):
    """Nobody listens any more."""


class DiffusionEngine(DenoisingEngine, BaseEngine):
    """Answers by denoising. Every answer of a session draws its own random numbers."""

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
        model_args = start_from_checkpoint(model_args, options.checkpoint_dir, no_training)
        setup = set_up_masked_tokens(options, model_args, otherwise="mask")
        options = replace(options, block_size=setup.block_size)
        family = find_family(setup.config)
        self.tokenizer: Any = setup.tokenizer
        self.is_diffuseq = isinstance(options, DiffusionTuningOptions) and options.ddm_format == "diffuseq"
        if isinstance(options, DiffusionTuningOptions):
            data_args.template = choose_template(options, family, data_args.template, self.tokenizer)
        self.template: Any = get_template_and_fix_tokenizer(self.tokenizer, data_args)
        predictor, _ = load_token_predictor(setup, model_args, finetuning_args, no_training)

        self.name = EngineName.HF
        self.can_generate = True
        self.model: Any = predictor.backbone.eval()
        self.generating_args: dict[str, Any] = generating_args.to_dict()
        self.sampler = Sampler(
            self.model,
            self.tokenizer,
            SamplingSettings.from_options(options, generating_args, family=family, block_size=options.block_size),
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
        images: Any = None,
        videos: Any = None,
        audios: Any = None,
        **input_kwargs: Any,
    ) -> list[Response]:
        self._refuse_media(images, videos, audios)
        prompt = self.encode_prompt(messages, system, tools)
        count = input_kwargs.get("num_return_sequences") or 1
        settings = self._settings(input_kwargs)
        async with self.semaphore:
            generated = await asyncio.to_thread(
                self.sampler.complete, [prompt] * count, self._numbers(count), settings=settings
            )
        skip, stops = self._skips_special_tokens(input_kwargs), stop_strings(input_kwargs.get("stop"))
        responses = []
        for each in generated:
            text = self.sampler.decode(each.tokens, skip)
            answer = cut_at(text, stops)
            responses.append(
                Response(
                    response_text=answer,
                    response_length=len(each.tokens) + each.ended,
                    prompt_length=len(prompt),
                    finish_reason="stop" if each.ended or answer != text else "length",
                )
            )
        return responses

    async def stream_chat(
        self,
        messages: list[dict[str, str]],
        system: str | None = None,
        tools: str | None = None,
        images: Any = None,
        videos: Any = None,
        audios: Any = None,
        *,
        whole_texts: bool = False,
        **input_kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """The text as it settles: what stands for good from the left, piece by piece; or, with `whole_texts`, the
        whole text after each step, with blocks for what is masked still."""
        self._refuse_media(images, videos, audios)
        prompt = self.encode_prompt(messages, system, tools)
        skip, stops = self._skips_special_tokens(input_kwargs), stop_strings(input_kwargs.get("stop"))
        async with self.semaphore:
            sent = ""
            async for tokens, is_finished in self._denoise(prompt, self._settings(input_kwargs)):
                if whole_texts:
                    shown = self.sampler.show(
                        [token or 0 for token in tokens], [token is None for token in tokens], skip
                    )
                    yield cut_at(shown, stops)
                    continue
                settled = tokens[: tokens.index(None)] if None in tokens else tokens
                text = cut_at(self.sampler.decode([token for token in settled if token is not None], skip), stops)
                if not is_finished:
                    text = without_begun_stop(text.rstrip("\ufffd"), stops)  # of a character, other bytes are to come
                if len(text) > len(sent) and text.startswith(sent):
                    yield text[len(sent) :]
                    sent = text

    async def get_scores(self, batch_input: list[str], **input_kwargs: Any) -> list[float]:
        raise ValueError("A diffusion language model answers, it does not score: use a reward model.")

    def encode_prompt(self, messages: list[dict[str, str]], system: str | None, tools: str | None) -> list[int]:
        """A conversation as training wrote it, up to the answer that is asked for."""
        answered = [*messages, {"role": "assistant", "content": ""}]
        prompt, _ = self.template.encode_oneturn(self.tokenizer, answered, system, tools)
        if not self.is_diffuseq:
            return list(prompt)
        special = diffuseq_tokens(self.tokenizer)
        return [special.bos, *prompt, special.sep]

    # -------------------------------------------------- one answer --------------------------------------------------

    async def _denoise(
        self, prompt: list[int], settings: SamplingSettings
    ) -> AsyncGenerator[tuple[list[int | None], bool], None]:
        """The answer's tokens after each step, None for those that are masked, and whether it is finished."""
        steps: queue.Queue[list[int | None] | Generated | BaseException] = queue.Queue()
        stopped = Event()

        def watch(frame: Frame) -> None:
            if stopped.is_set():
                raise StoppedError
            canvas = frame.canvas
            answer = canvas.tokens[0].where(~canvas.masked[0], -1)[canvas.generated[0]].tolist()
            steps.put([None if token < 0 else token for token in answer])

        def work() -> None:
            try:
                (generated,) = self.sampler.complete([prompt], self._numbers(1), settings=settings, watch=watch)
                steps.put(generated)
            except BaseException as error:  # also when nobody listens: a thread may still wait for the next step
                steps.put(error)

        running = asyncio.create_task(asyncio.to_thread(work))
        try:
            while True:
                step = await asyncio.to_thread(steps.get)
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, Generated):
                    yield list(step.tokens), True
                    break
                yield self._up_to_end(step), False
        finally:
            stopped.set()
            await running

    def _up_to_end(self, tokens: list[int | None]) -> list[int | None]:
        """Without what stands behind the first end token."""
        for index, token in enumerate(tokens):
            if token in self.sampler.end_tokens:
                return tokens[:index]
        return tokens

    def _settings(self, input_kwargs: dict[str, Any]) -> SamplingSettings:
        """What a request asks for, by the names of the host's interfaces."""
        asked = {name: value for name, value in input_kwargs.items() if value is not None}
        if asked.get("max_length") and not asked.get("max_new_tokens"):
            asked["max_new_tokens"] = asked["max_length"]
        if asked.get("do_sample") is None and self.generating_args["do_sample"] is False:
            asked["do_sample"] = False
        if asked.get("num_return_sequences", 1) > 1:  # several answers that are the same help nobody
            asked["do_sample"] = True
            asked["temperature"] = asked.get("temperature") or self.sampler.settings.temperature or 1.0
        return self.sampler.settings.with_generation(asked)

    def _skips_special_tokens(self, input_kwargs: dict[str, Any]) -> bool:
        asked = input_kwargs.get("skip_special_tokens")
        return bool(self.generating_args["skip_special_tokens"] if asked is None else asked)

    def _numbers(self, count: int) -> range:
        first, self.answers = self.answers, self.answers + count
        return range(first, first + count)

    def _refuse_media(self, *media: Any) -> None:
        if any(media):
            raise ValueError("A diffusion language model reads text only: leave images, videos and audios out.")
