"""docs/checkpoints.md explains every setting of a source, and the page of commands shows what `inspect` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_embed.cli import main
from llamafactory_embed.hparams.source import SOURCE_SETTINGS, SourceOptions
from llamafactory_embed.loading.source import check_settings
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from tests.docs.option_pages import PAGES, declared_options, explained_options
from tests.loading.published import SUPERVISED, copy_llm2vec


def test_every_setting_is_explained_once() -> None:
    assert explained_options("checkpoints.md") == declared_options(SourceOptions)


def test_every_setting_is_one_of_the_configuration() -> None:
    fields = {*EmbeddingConfig.__dataclass_fields__, "adapters"}
    assert set(SOURCE_SETTINGS) <= fields
    given = SourceOptions(pooling="mean", adapters=["a"]).settings
    assert check_settings(given) == given == {"pooling": "mean", "adapters": ["a"]}


def test_the_page_shows_what_inspect_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_llm2vec(tmp_path))
    assert main(["inspect", SUPERVISED]) == 0
    shown = capsys.readouterr().out
    assert f"$ llamafactory-embed inspect {SUPERVISED}\n{shown}" in (PAGES / "cli.md").read_text("utf-8")
