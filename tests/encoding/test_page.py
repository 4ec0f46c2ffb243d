"""docs/encode.md: its table has every option, and its classes work in the packages that they are for."""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_embed import Encoder
from llamafactory_embed.encoding.command import add_arguments
from llamafactory_embed.hparams.source import SOURCE_SETTINGS
from tests.embedders import INSTRUCTION, PROSE, make_embedder
from tests.tiny_models import tiny_tokenizer


PAGE = (Path(__file__).parents[2] / "docs" / "encode.md").read_text("utf-8")


def test_the_page_explains_every_option_once_with_its_default() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    declared = {
        action.option_strings[0]: "required" if action.required else f"`{action.default}`" if action.default else ""
        for action in parser._actions
        if action.option_strings and action.dest not in SOURCE_SETTINGS  # docs/checkpoints.md has these
    }
    explained = re.findall(r"^\| `(--[\w-]+)` \|\s*([^|]*?)\s*\| .", PAGE.partition("## Options")[2], re.MULTILINE)
    assert sorted(explained) == sorted(declared.items())


def snippet(package: str) -> dict[str, Any]:
    """The names that the page's code for a package defines."""
    pytest.importorskip(package)
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if package in block)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(make_embedder(instructions={"next_line": INSTRUCTION}), tiny_tokenizer())


def test_langchain(encoder: Encoder) -> None:
    names = snippet("langchain_core")
    from langchain_core.vectorstores import InMemoryVectorStore

    embeddings = names["LangChainEmbeddings"](encoder, task="next_line")
    np.testing.assert_allclose(embeddings.embed_documents(PROSE), encoder.encode(PROSE), atol=1e-6)
    query = encoder.encode(PROSE[0], task="next_line")
    np.testing.assert_allclose(embeddings.embed_query(PROSE[0]), query, atol=1e-6)
    store = InMemoryVectorStore.from_texts(PROSE, embeddings)
    found = [each.page_content for each in store.similarity_search(PROSE[0], k=3)]
    assert found == [PROSE[place] for place in np.argsort(-(encoder.encode(PROSE) @ query))[:3]]


def test_llama_index(encoder: Encoder) -> None:
    names = snippet("llama_index")
    embeddings = names["LlamaIndexEmbeddings"](encoder=encoder, task="next_line")
    np.testing.assert_allclose(embeddings.get_text_embedding_batch(PROSE), encoder.encode(PROSE), atol=1e-5)
    np.testing.assert_allclose(embeddings.get_text_embedding(PROSE[1]), encoder.encode(PROSE[1]), atol=1e-6)
    query = encoder.encode(PROSE[0], task="next_line")
    np.testing.assert_allclose(embeddings.get_query_embedding(PROSE[0]), query, atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embeddings.aget_query_embedding(PROSE[0])), query, atol=1e-6)
