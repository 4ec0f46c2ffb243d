"""Seam: `llamafactory-cli chat`, `webchat` and `api`. A stage brings its engine, and an answer that does not grow from
left to right is shown as a text that settles in place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

from ..stages.registry import load_registry
from ..terminal import SettlingText
from . import contract


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments


ENGINE_ARGUMENTS = ("self", "model_args", "data_args", "finetuning_args", "generating_args")
STREAM_ARGUMENTS = ("self", "messages", "system", "tools", "images", "videos", "audios", "input_kwargs")


class DenoisingEngine:
    """Mixed into an engine whose text does not grow from left to right: `stream_chat(…, whole_texts=True)` yields the
    whole text after each step, at last the finished one."""

    options: Any
    """The options of the stage, among them those of `hparams.sampling.SamplingOptions`."""

    def change_sampling(self, **values: Any) -> None:
        """Answer with other values of some of these from now on; a ValueError where they contradict each other."""
        raise NotImplementedError


class WholeText(str):
    """A text that replaces what it is appended to, for code that collects a stream with `+=`."""

    __slots__ = ()

    def __radd__(self, other: str) -> str:
        return str(self)


def apply(module: ModuleType) -> None:
    """Adjust one of the three modules of the host that this seam concerns."""
    {"hf_engine": _apply_engine, "chat_model": _apply_terminal, "chatter": _apply_web}[
        module.__name__.rpartition(".")[2]
    ](module)


def _apply_engine(hf_engine: Any) -> None:
    """Make the engine of the recipe's stage where the host makes the one for transformers models."""
    host_engine = contract.attribute(hf_engine, "HuggingfaceEngine")
    contract.check_signature(host_engine.__init__, *ENGINE_ARGUMENTS)

    class HuggingfaceEngine(host_engine):  # type: ignore[misc, valid-type]
        def __new__(
            cls,
            model_args: ModelArguments,
            data_args: DataArguments,
            finetuning_args: FinetuningArguments,
            generating_args: GeneratingArguments,
        ) -> Any:
            stage = load_registry().find(finetuning_args.stage)
            if stage is None:
                return super().__new__(cls)
            if not stage.engine:
                raise ValueError(f"`stage: {stage.name}` trains models that do not chat: use its other commands.")
            return stage.load_engine()(model_args, data_args, finetuning_args, generating_args)

    hf_engine.HuggingfaceEngine = HuggingfaceEngine


def _apply_terminal(chat_model: Any) -> None:
    """Let a text settle in its place when `llamafactory-cli chat` runs in a terminal."""
    host_run_chat = contract.attribute(chat_model, "run_chat")
    host_model = contract.attribute(chat_model, "ChatModel")
    contract.check_signature(host_run_chat)
    contract.check_signature(contract.attribute(host_model, "stream_chat"), *STREAM_ARGUMENTS)

    class TerminalChatModel(host_model):  # type: ignore[misc, valid-type]
        def stream_chat(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[str]:
            if not isinstance(self.engine, DenoisingEngine) or not sys.stdout.isatty():
                yield from super().stream_chat(messages, *args, **kwargs)
                return
            text = ""
            with SettlingText(sys.stdout, prefix="Assistant: ") as screen:  # as the host writes it
                for text in super().stream_chat(messages, *args, whole_texts=True, **kwargs):
                    screen.show(text)
            yield text

    def run_chat() -> None:
        with mock.patch.object(chat_model, "ChatModel", TerminalChatModel):
            host_run_chat()

    chat_model.run_chat = run_chat


def _apply_web(chatter: Any) -> None:
    """Give whole texts to the pages of `webchat` and LLaMA Board, which collect a stream with `+=`."""
    web_model = contract.attribute(chatter, "WebChatModel")
    host_stream_chat = contract.attribute(web_model, "stream_chat")
    contract.check_signature(host_stream_chat, *STREAM_ARGUMENTS)

    def stream_chat(self: Any, messages: Any, *args: Any, **kwargs: Any) -> Iterator[str]:
        if isinstance(self.engine, DenoisingEngine):
            texts = host_stream_chat(self, messages, *args, whole_texts=True, **kwargs)
            yield from map(WholeText, texts)
        else:
            yield from host_stream_chat(self, messages, *args, **kwargs)

    web_model.stream_chat = stream_chat
