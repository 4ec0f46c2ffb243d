"""`llamafactory-cli chat`, `webchat` and `api` with a diffusion language model, in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import io
import json
import queue
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llamafactory.api.app import create_app
from llamafactory.chat import ChatModel, chat_model
from llamafactory.webui.chatter import WebChatModel

from attention_patch import current_patch
from llamafactory_embed.host.chat import WholeText
from llamafactory_embed.sampling.sampler import HIDDEN
from llamafactory_embed.serve import steps
from llamafactory_embed.serve.chat import DiffusionEngine
from llamafactory_embed.stages import DDM_SFT
from tests.patience import PATIENCE
from tests.tiny_models import save_tiny_model


QUESTION = [{"role": "user", "content": "What do the people of the United States want?"}]


def arguments(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "stage": "ddm-sft",
        "template": "default",
        "max_new_tokens": 12,
        "diffusion_steps": 6,
        "block_length": 6,
        "infer_dtype": "float32",
    } | changes


@pytest.fixture(scope="module")
def served(tiny_llama: Path) -> ChatModel:
    return ChatModel(arguments(tiny_llama))


@pytest.fixture
def fresh(served: ChatModel) -> ChatModel:
    """As if it had just been loaded: the numbers of answers decide what is drawn."""
    served.engine.answers = 0
    return served


def test_a_stage_chats_with_its_own_engine(served: ChatModel) -> None:
    assert isinstance(served.engine, DiffusionEngine)
    assert not served.engine.model.training
    assert served.engine.sampler.settings.block_length == 6


def test_changed_sampling_is_that_of_a_model_loaded_with_it(tiny_llama: Path) -> None:
    changed, loaded = (
        ChatModel(arguments(tiny_llama)),
        ChatModel(arguments(tiny_llama, diffusion_steps=3, block_length=4)),
    )
    changed.engine.change_sampling(diffusion_steps=3, block_length=4)
    assert changed.engine.sampler.settings == loaded.engine.sampler.settings
    assert changed.engine.options == loaded.engine.options
    answers = [model.chat(QUESTION)[0].response_text for model in (changed, loaded)]
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match="set `block_length`"):
        changed.engine.change_sampling(sampling_cache="dual", block_length=None)
    assert changed.engine.sampler.settings == loaded.engine.sampler.settings


def test_the_hosts_own_stages_keep_theirs(tiny_llama: Path) -> None:
    stock = ChatModel({"model_name_or_path": str(tiny_llama), "template": "default", "infer_dtype": "float32"})
    assert not isinstance(stock.engine, DiffusionEngine)
    assert stock.engine.can_generate
    assert stock.chat(QUESTION, max_new_tokens=3)[0].response_length <= 3


def test_a_stage_without_an_engine_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match="`stage: contrastive` trains models that do not chat"):
        ChatModel({"model_name_or_path": str(tiny_llama), "stage": "contrastive"})


def test_the_prompt_is_what_training_wrote(served: ChatModel) -> None:
    engine = served.engine
    turns = [*QUESTION, {"role": "assistant", "content": "Peace"}, {"role": "user", "content": "Why?"}]
    pairs = engine.template.encode_multiturn(engine.tokenizer, [*turns, {"role": "assistant", "content": "So."}])
    trained = [token for source, target in pairs for token in (*source, *target)][: -len(pairs[-1][1])]
    assert engine.encode_prompt(turns, None, None) == trained


def test_answers(fresh: ChatModel) -> None:
    first, second = fresh.chat(QUESTION), fresh.chat(QUESTION)
    assert first != second  # each draws its own numbers
    fresh.engine.answers = 0
    assert fresh.chat(QUESTION) == first
    (response,) = first
    assert 0 < response.response_length <= 12
    assert response.prompt_length == len(fresh.engine.encode_prompt(QUESTION, None, None))
    assert response.finish_reason == ("stop" if response.response_length < 12 else "length")


def test_a_request_overrides_the_recipe(fresh: ChatModel) -> None:
    (short,) = fresh.chat(QUESTION, max_new_tokens=3)
    assert short.response_length <= 3
    greedy = [fresh.chat(QUESTION, do_sample=False)[0].response_text for _ in range(2)]
    assert greedy[0] == greedy[1]
    assert len({response.response_text for response in fresh.chat(QUESTION, num_return_sequences=3)}) == 3


def test_the_same_seed_gives_the_same_answer(fresh: ChatModel) -> None:
    (first,) = fresh.chat(QUESTION, seed=7)
    fresh.chat(QUESTION)  # another answer in between
    assert fresh.chat(QUESTION, seed=7) == [first]
    assert "".join(fresh.stream_chat(QUESTION, seed=7)) == first.response_text
    assert fresh.chat(QUESTION, seed=8) != [first]
    several = fresh.chat(QUESTION, seed=7, num_return_sequences=2)
    assert len({response.response_text for response in several}) == 2


def test_a_stream_adds_up_to_the_answer(fresh: ChatModel) -> None:
    (whole,) = fresh.chat(QUESTION)
    fresh.engine.answers = 0
    pieces = list(fresh.stream_chat(QUESTION))
    assert "".join(pieces) == whole.response_text
    assert len(pieces) > 1


def test_whole_texts_settle(fresh: ChatModel) -> None:
    (whole,) = fresh.chat(QUESTION)
    fresh.engine.answers = 0
    texts = list(fresh.stream_chat(QUESTION, whole_texts=True))
    hidden = [text.count(HIDDEN) for text in texts]
    assert hidden == sorted(hidden, reverse=True)
    assert hidden[0] > 0
    assert texts[-1] == whole.response_text


def test_answers_at_the_same_time_are_those_of_one_after_the_other(fresh: ChatModel) -> None:
    """`MAX_CONCURRENT` above 1."""
    one_by_one = [fresh.chat(QUESTION)[0].response_text for _ in range(6)]
    fresh.engine.answers = 0
    attention = current_patch(fresh.engine.model)

    async def chat() -> str:
        (response,) = await fresh.engine.chat(QUESTION)
        return response.response_text

    async def stream() -> str:
        return "".join([piece async for piece in fresh.engine.stream_chat(QUESTION)])

    async def at_once() -> list[str]:
        fresh.engine.semaphore = asyncio.Semaphore(3)
        return await asyncio.gather(*(request() for request in (chat, stream, chat, stream, stream, chat)))

    together = asyncio.run(at_once())
    fresh.engine.semaphore = asyncio.Semaphore(1)  # that one belonged to the loop above
    assert together == one_by_one
    assert current_patch(fresh.engine.model) is attention  # no answer has patched the shared model anew


def test_a_listener_who_leaves_stops_the_denoising(fresh: ChatModel) -> None:
    async def leave() -> int:
        before = fresh.engine.sampler.forwards
        stream = fresh.engine.stream_chat(QUESTION, whole_texts=True, max_new_tokens=60)
        async for _ in stream:
            break
        await stream.aclose()
        return before

    before = asyncio.run(leave())
    fresh.engine.semaphore = asyncio.Semaphore(1)  # that one belonged to the loop above
    assert fresh.engine.sampler.forwards == before  # it never came to its end, where forwards are counted
    assert fresh.chat(QUESTION)


def test_a_listener_who_is_cut_off_leaves_no_thread_waiting(fresh: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server cancels the request while the next step is awaited, which then never comes."""
    entered, released = threading.Event(), threading.Event()

    def complete(*args: Any, watch: Any, **kwargs: Any) -> Any:
        entered.set()
        assert released.wait(PATIENCE)
        watch(None)  # finds out that nobody listens

    queues: list[queue.Queue[Any]] = []

    def make_queue() -> queue.Queue[Any]:
        queues.append(queue.Queue())
        return queues[-1]

    monkeypatch.setattr(fresh.engine.sampler, "complete", complete)
    monkeypatch.setattr(steps, "queue", SimpleNamespace(Queue=make_queue))
    threads = ThreadPoolExecutor()

    async def cut_off() -> None:
        asyncio.get_running_loop().set_default_executor(threads)
        fresh.engine.semaphore = asyncio.Semaphore(1)
        stream = fresh.engine.stream_chat(QUESTION)
        reading = asyncio.ensure_future(anext(stream))
        while not entered.is_set():
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.sleep(0)  # the stream learns of it, and waits for the step that is being computed
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await reading

    loop = asyncio.new_event_loop()
    loop.run_until_complete(cut_off())
    fresh.engine.semaphore = asyncio.Semaphore(1)  # that one belonged to the loop above
    waiting = threading.Thread(target=threads.shutdown, daemon=True)
    waiting.start()
    waiting.join(PATIENCE)
    is_waiting = waiting.is_alive()
    for each in queues:
        each.put(None)  # Python waits for its threads when it ends
    assert not is_waiting


def test_a_request_may_name_where_answers_stop(fresh: ChatModel) -> None:
    (whole,) = fresh.chat(QUESTION)
    stop = whole.response_text[4:7]
    before = whole.response_text.partition(stop)[0]
    fresh.engine.answers = 0
    (cut,) = fresh.chat(QUESTION, stop=stop)
    assert (cut.response_text, cut.finish_reason) == (before, "stop")
    for whole_texts in (False, True):
        fresh.engine.answers = 0
        pieces = list(fresh.stream_chat(QUESTION, stop=["", stop, "nowhere"], whole_texts=whole_texts))
        assert (pieces[-1] if whole_texts else "".join(pieces)) == before


def test_a_family_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    unknown = {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config | unknown), "utf-8")
    with pytest.raises(ValueError, match=r"`olmo2` models.*set `mask_token` and `shift`"):
        ChatModel(arguments(folder))


def test_media_and_scores_are_refused(served: ChatModel) -> None:
    with pytest.raises(ValueError, match="reads text only"):
        served.chat(QUESTION, images=["picture"])
    with pytest.raises(ValueError, match="it does not score"):
        served.get_scores(["text"])


def test_the_web_page_collects_texts_that_replace_one_another(fresh: ChatModel) -> None:
    (whole,) = fresh.chat(QUESTION)
    fresh.engine.answers = 0
    page = WebChatModel(SimpleNamespace())
    page.engine, page._loop = fresh.engine, fresh._loop
    request = {
        "chatbot": [],
        "messages": QUESTION,
        "lang": "en",
        "system": "",
        "tools": "",
        "image": None,
        "video": None,
        "audio": None,
        "max_new_tokens": 12,
        "top_p": 0.7,
        "temperature": 0.95,
        "seed": -1,  # asked for by newer hosts, whose page sends -1 for none
        "skip_special_tokens": True,
        "escape_html": False,
        "enable_thinking": False,
    }
    known = inspect.signature(page.stream).parameters
    request = {name: value for name, value in request.items() if name in known}
    shown = [chatbot[-1]["content"] for chatbot, _ in page.stream(**request)]
    assert HIDDEN in shown[0]
    assert shown[-1] == whole.response_text
    assert type("" + WholeText("a")) is str


def test_the_api_answers_and_streams(fresh: ChatModel) -> None:
    pytest.importorskip("sse_starlette")
    client_of = pytest.importorskip("starlette.testclient").TestClient
    (whole,) = fresh.chat(QUESTION)
    with client_of(create_app(fresh)) as client:
        request = {"model": "diffusion", "messages": QUESTION}
        fresh.engine.answers = 0
        answer = client.post("/v1/chat/completions", json=request).json()
        assert answer["choices"][0]["message"]["content"] == whole.response_text
        assert answer["usage"]["completion_tokens"] == whole.response_length
        fresh.engine.answers = 0
        streamed = client.post("/v1/chat/completions", json=request | {"stream": True}).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: {")]
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(pieces) == whole.response_text


def test_an_engine_is_named_by_its_place() -> None:
    with pytest.raises(ValueError, match=r"`engine` of stage 'mine' must read `package.module:Class`, not 'engine'"):
        dataclasses.replace(DDM_SFT, name="mine", engine="engine")


def test_in_a_terminal_the_text_settles_in_place(
    fresh: ChatModel, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (whole,) = fresh.chat(QUESTION)
    asked = iter([QUESTION[0]["content"], "exit"])
    screen = Terminal()
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", *(f"--{k}={v}" for k, v in arguments(tiny_llama).items())])
    monkeypatch.setattr(sys, "stdout", screen)
    chat_model.run_chat()
    monkeypatch.undo()
    written = screen.getvalue()
    assert HIDDEN in written
    assert written.rpartition("\x1b[J")[2] == f"Assistant: {whole.response_text}\n"
    assert chat_model.ChatModel is ChatModel


def test_diffuseq_prompts_are_those_of_training(tiny_llama: Path) -> None:
    engine = ChatModel(arguments(tiny_llama, ddm_format="diffuseq")).engine
    prompt = engine.encode_prompt([{"role": "user", "content": "Why"}], None, None)
    source = engine.tokenizer("Why", add_special_tokens=False)["input_ids"]
    assert prompt[0] == engine.tokenizer.bos_token_id
    assert prompt[1:-1] == source
