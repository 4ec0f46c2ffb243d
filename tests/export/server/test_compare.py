"""`verify` names what a server does otherwise than the checkpoint, from its vectors alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.testclient import TestClient
from torch.nn.functional import normalize

from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.export import command as export_command
from llamafactory_embed.export.server import command, compare
from llamafactory_embed.export.server.client import ServerClient
from llamafactory_embed.export.server.command import ComparedServer, ServerCheckOptions
from llamafactory_embed.export.server.compare import Comparison, compare_server
from llamafactory_embed.hparams.serving import ServingOptions
from llamafactory_embed.serve.embeddings.app import EmbeddingServer
from tests.docs.option_pages import declared_options, explained_options
from tests.embedders import INSTRUCTION
from tests.export.checkpoints import train
from tests.export.server.stubs import LIMIT, StubServer, mean
from tests.tiny_models import tiny_tokenizer


PROMPT = f"Instruct: {INSTRUCTION}\nQuery: "
ONE_TASK = {"instructions": {"next_line": INSTRUCTION}, "symmetric_tasks": []}
LENGTHS = {"query_max_length": LIMIT, "document_max_length": LIMIT}
EOS = (tiny_tokenizer().eos_token_id,)
QUERIES, DOCUMENTS = "queries, prompt `query`", "documents, prompt `document`"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("mean"), adapter=False, **ONE_TASK, **LENGTHS).folder


@pytest.fixture(scope="module")
def last_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal embedder that reads EOS."""
    folder = tmp_path_factory.mktemp("last")
    return train(folder, adapter=False, attention="causal", pooling="last", **ONE_TASK, **LENGTHS).folder


@pytest.fixture(scope="module")
def without_prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skip")
    return train(folder, adapter=False, skip_instruction=True, **ONE_TASK, **LENGTHS).folder


def ask(folder: Path, app: Any, **options: Any) -> Comparison:
    with TestClient(app) as http:
        return compare_server(folder, "", ServerCheckOptions(**options), http)


def test_a_server_that_embeds_as_the_checkpoint(checkpoint: Path) -> None:
    found = ask(checkpoint, StubServer(checkpoint).app())
    assert (found.differences, found.remarks) == ({}, [])
    assert found.largest <= 1e-5
    assert found.texts == 10
    assert "as in float32" in found.describe()[0]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "causal": ({"bidirectional": False}, "the server embeds causally"),
    "no first token": ({"pool": lambda states: mean(states[1:])}, "mean pooling leaves out the first token"),
    "no last token": (
        {"pool": lambda states: mean(states[:-1] if len(states) > 1 else states)},
        "mean pooling leaves out the last token",
    ),
    "last token": ({"pool": lambda states: states[-1]}, "the server pools the last token, the checkpoint `mean`"),
    "no prompt": ({"rewrite": lambda text: text.removeprefix(PROMPT)}, "the prompt is missing"),
    "two prompts": (
        {"rewrite": lambda text: PROMPT + text if text.startswith(PROMPT) else text},
        "the prompt is written twice",
    ),
    "prompt of documents": (
        {"rewrite": lambda text: text if text.startswith(PROMPT) else PROMPT + text},
        "the server writes the prompt `query` before the text",
    ),
    "stripped": ({"rewrite": str.strip}, "white space around a text is removed"),
    "EOS": ({"closing": EOS}, "</s> is added after the text, where training had none"),
    "no BOS": ({"opening": False}, "<s> is missing before the text"),
    "length": ({"unit_length": False}, "the vectors are not of unit length, the checkpoint's are"),
    "cut early": ({"limit": 111}, f"texts are cut after 111 tokens, not after {LIMIT}"),
    "cut from the left": (
        {"keep": lambda ids, room: ids[-room:]},
        "texts that are too long lose their beginning, not their end",
    ),
    "size": (
        {"finish": lambda vectors: normalize(vectors[:, :20])},
        "the vectors have 20 numbers, the checkpoint's 32",
    ),
    "order": ({"finish": lambda vectors: vectors.flip(0)}, "several texts of a request come back in another order"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, checkpoint: Path) -> None:
    changes, sentence = MISTAKES[mistake]
    assert list(ask(checkpoint, StubServer(checkpoint, **changes).app()).differences) == [sentence]


def test_two_mistakes_at_once_are_both_named(checkpoint: Path) -> None:
    found = ask(checkpoint, StubServer(checkpoint, bidirectional=False, pool=lambda states: states[-1]).app())
    assert set(found.differences) == {
        "the server embeds causally",
        "the server pools the last token, the checkpoint `mean`",
    }


def test_padding_that_takes_part_is_seen_in_a_request_of_several_texts(checkpoint: Path) -> None:
    found = ask(checkpoint, StubServer(checkpoint, pads=True).app())
    (sentence,) = found.differences
    assert sentence.endswith("padding takes part")


def test_another_model_is_no_known_mistake(checkpoint: Path, last_token: Path) -> None:
    found = ask(checkpoint, StubServer(checkpoint, finish=lambda vectors: vectors.roll(1, 1)).app())
    (sentence,) = found.differences
    assert "for a reason that this check does not know" in sentence


def test_half_precision_is_no_mistake(checkpoint: Path) -> None:
    found = ask(checkpoint, StubServer(checkpoint, dtype=torch.bfloat16).app(), tolerance=0.05)
    assert found.differences == {}
    assert 1e-5 < found.largest < 0.05
    causal = StubServer(checkpoint, dtype=torch.bfloat16, bidirectional=False)
    assert list(ask(checkpoint, causal.app(), tolerance=0.05).differences) == ["the server embeds causally"]


def test_a_pooling_of_one_token_that_closes_a_text(last_token: Path) -> None:
    right = {"bidirectional": False, "closing": EOS, "pool": lambda states: states[-1]}
    assert ask(last_token, StubServer(last_token, **right).app()).differences == {}
    found = ask(last_token, StubServer(last_token, **right | {"closing": ()}).app())
    assert list(found.differences) == ["</s> is missing after the text"]
    found = ask(last_token, StubServer(last_token, **right | {"pool": mean}).app())
    assert list(found.differences) == ["the server pools the mean of all tokens, the checkpoint `last`"]
    found = ask(last_token, StubServer(last_token, **right | {"bidirectional": True}).app())
    assert list(found.differences) == [
        "the server attends to the whole text, where the checkpoint attends to what comes before only"
    ]


def test_a_prompt_that_should_not_be_pooled(without_prompt: Path) -> None:
    found = ask(without_prompt, StubServer(without_prompt, pool=lambda states: mean(states[1:])).app())
    assert "mean pooling leaves out the first token" in found.differences or found.differences
    assert any(QUERIES in uses for uses in found.differences.values())


def test_a_server_that_refuses_long_texts_or_lists_no_models(checkpoint: Path) -> None:
    found = ask(checkpoint, StubServer(checkpoint, refuses_long=True, lists_models=False).app())
    assert found.differences == {}
    assert f"Texts of more than {LIMIT} tokens are refused" in found.remarks[0]


@pytest.mark.parametrize("pooling", ["mean", "latent"])
def test_our_own_server_with_every_prompt(pooling: str, tmp_path: Path) -> None:
    folder = train(tmp_path, pooling=pooling, skip_instruction=True, matryoshka_dims=[8], **LENGTHS).folder
    server = EmbeddingServer(Encoder(folder), "mine", ServingOptions(query_task="same"))
    found = ask(folder, server.make_app(), query_task="same", dimensions=8)
    assert (found.differences, found.remarks) == ({}, [])
    assert found.largest <= 1e-5


# ---------------------------------------------------- the command ----------------------------------------------------


def test_the_command_and_its_exit_codes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    causal = {"bidirectional": False}
    for changes, code, line in (({}, 0, "ok  The same vectors"), (causal, 1, "DIFFERS  the server embeds causally")):
        with TestClient(StubServer(checkpoint, **changes).app()) as http:
            monkeypatch.setattr(ServerClient, "open", lambda *_, http=http: ServerClient(http))
            assert main(["verify", str(checkpoint), "--server", "http://there:8000/v1"]) == code
        assert capsys.readouterr().out.startswith(line)


def test_export_compares_a_server(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(export_command, "_export", lambda arguments: None)
    monkeypatch.setattr(command, "report_server", lambda *arguments: asked.append(arguments) or 1)
    target = str(tmp_path / "exported")
    words = ["export", str(checkpoint), target, "--server", "http://there:8000", "--query-task", "next_line"]
    assert main([*words, "--push-to", "me/mine"]) == 1
    assert asked == [(target, "http://there:8000", ServerCheckOptions(query_task="next_line"))]
    assert "me/mine" not in capsys.readouterr().out, "what differs is not pushed"


@pytest.mark.parametrize(
    ("status", "text", "sentence"),
    [
        (401, '{"error": "no key"}', r"refuses: 401, .*no key"),
        (200, "hello", "something else than JSON"),
        (200, '{"data": [{"embedding": [1.0]}]}', "does not answer as OpenAI's API does"),
        (200, '{"data": []}', "answers 0 vectors to 1 texts|does not answer"),
    ],
)
def test_strange_answers_get_one_sentence(status: int, text: str, sentence: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404) if request.url.path == "/v1/models" else httpx.Response(status, text=text)

    client = ServerClient(httpx.Client(base_url="http://there", transport=httpx.MockTransport(answer)))
    with pytest.raises(ValueError, match=sentence):
        client.embed(["a"], {})


def test_addresses_keys_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerClient, "_list_models", lambda self: [{"id": "one"}, {"id": "two"}])
    monkeypatch.setenv("KEY_OF_TEST", "secret")
    client = ServerClient.open("http://there:1/v1/", None, "KEY_OF_TEST", 5)
    assert str(client.http.base_url) == "http://there:1"
    assert client.http.headers["authorization"] == "Bearer secret"
    assert client.model == "one"
    with pytest.raises(ValueError, match="no model 'three', only one, two"):
        ServerClient.open("http://there:1", "three", "NO_SUCH_KEY", 5)
    with pytest.raises(ValueError, match="must be an address"):
        ServerClient.open("there:1", None, "NO_SUCH_KEY", 5)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="does not answer"):
        ServerClient.open("http://127.0.0.1:9", None, "NO_SUCH_KEY", 5)


def test_vectors_that_are_no_numbers_differ() -> None:
    import numpy as np

    assert compare.difference_of_directions(np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]])) == np.inf


def test_the_page_explains_every_option_once_with_its_default() -> None:
    pages = explained_options("serve.md")
    served = declared_options(ServingOptions)
    compared = declared_options(ServerCheckOptions)
    assert pages == sorted(served + compared)
    assert {field.name for field in dataclasses.fields(ComparedServer)} == {"folder", "server"}
