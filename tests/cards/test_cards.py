"""Model cards are read back by the hub's own classes, and hold nothing that was not known or should not be seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from llamafactory_embed.cards.header import (
    CardHeader,
    Evaluation,
    evaluations_by_dataset,
    hub_name,
    read_card_header,
    read_evaluations,
    shown_name,
    write_card_file,
)
from llamafactory_embed.cards.sections import LONGEST_CELL, WORKS, cell, citation_section, samples_section, sections_of
from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.hparams.mntp import MntpOptions
from llamafactory_embed.hparams.option import make_options


EVALUATIONS = [
    Evaluation("information-retrieval", "wordnet/nouns", {"ndcg@10": 0.25, "mrr@10": 0.5}),
    Evaluation("information-retrieval", "verbs", {"ndcg@10": 0.125}),
]
HEADER = CardHeader(
    library="sentence-transformers",
    tags=["text-embedding", "llama-factory"],
    pipeline_tag="sentence-similarity",
    base_model="Qwen/Qwen3-0.6B",
    relation="adapter",
    license="apache-2.0",
    languages=["en", "de"],
    datasets=["samaya-ai/msmarco-w-instructions"],
    evaluations=EVALUATIONS,
)


def test_the_hub_reads_what_was_written(tmp_path: Path) -> None:
    write_card_file(tmp_path, "my-model", HEADER, ["Text."])
    card = ModelCard((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert card.text.strip() == "# my-model\n\nText."
    data = card.data
    assert data.model_name == "my-model"
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert (data.license, data.language) == ("apache-2.0", ["en", "de"])
    assert (data.base_model, data["base_model_relation"]) == ("Qwen/Qwen3-0.6B", "adapter")
    assert data.datasets == ["samaya-ai/msmarco-w-instructions"]
    assert data.tags == ["text-embedding", "llama-factory", "llamafactory-embed"]
    found = {(each.dataset_name, each.metric_type): each.metric_value for each in data.eval_results}
    assert found == {
        ("wordnet/nouns", "ndcg_at_10"): 0.25,
        ("wordnet/nouns", "mrr_at_10"): 0.5,
        ("verbs", "ndcg_at_10"): 0.125,
    }
    assert {each.task_name for each in data.eval_results} == {"Information Retrieval"}


def test_evaluations_survive_the_way_through_a_card(tmp_path: Path) -> None:
    write_card_file(tmp_path, "my-model", HEADER, [])
    again = CardHeader(library="peft", evaluations=read_evaluations(tmp_path))
    assert again.render("my-model") == CardHeader(library="peft", evaluations=EVALUATIONS).render("my-model")


def test_what_is_not_known_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    write_card_file(tmp_path, "m", CardHeader(library="peft", base_model="models/mine", relation="adapter"), [])
    assert set(read_card_header(tmp_path)) == {"library_name", "tags"}


def test_secrets_do_not_get_into_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-this-machine")
    write_card_file(tmp_path, "m", HEADER, ["| row | a-secret-of-this-machine | hf_abcdefghijklmnopqrstuvwxyz |"])
    assert "| row | (hidden) | (hidden) |" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "on_hub", "shown"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("gpt2", "gpt2", "gpt2"),
        ("/home/alice/models/secret-project", None, "secret-project"),
        ("../other/model", None, "model"),
        ("a/b/c", None, "c"),
    ],
)
def test_folders_are_not_named(name: str, on_hub: str | None, shown: str) -> None:
    assert hub_name(name) == on_hub
    assert shown_name(name) == shown


def test_metrics_find_their_data_sets() -> None:
    metrics = {"eval_ndcg@10": 0.3, "eval_a_ndcg@10": 0.2, "eval_a_b_ndcg@10": 0.4, "epoch": 1.0}
    found = evaluations_by_dataset("information-retrieval", ["a", "a_b"], metrics)
    assert {each.dataset: each.metrics for each in found} == {"a": {"ndcg@10": 0.2}, "a_b": {"ndcg@10": 0.4}}
    (alone,) = evaluations_by_dataset("fill-mask", ["prose"], {"eval_loss": 2.0, "epoch": 1.0})
    assert alone == Evaluation("fill-mask", "prose", {"loss": 2.0})
    assert evaluations_by_dataset("fill-mask", ["prose"], {}) == []


def test_no_text_breaks_out_of_its_cell() -> None:
    assert cell("two\nlines | a\\b <b>`x`") == "two lines \\| a\\\\b &lt;b>\\`x\\`"
    assert len(cell("word " * 100)) == LONGEST_CELL
    lines = samples_section(("query", "positive"), [("a | b", "c\n## d")])
    assert lines[-1] == "| a \\| b | c ## d |"
    assert samples_section(("query", "positive"), []) == []


def test_sections_are_found_again_and_code_is_no_heading() -> None:
    page = "\n".join(["# t", "", "## Other", "x", *citation_section(["llm2vec", "llamafactory"]), "", "## End", "y"])
    taken = sections_of(page, ("Citation",))
    assert taken[0] == "## Citation"
    assert "\n".join(taken).count("```") == 2
    assert "x" not in taken
    assert "y" not in taken
    assert sections_of("## Citation\n```\n## code\n```\n", ("Citation",))[1:4] == ["```", "## code", "```"]


@pytest.mark.parametrize("work", WORKS)
def test_bibtex_is_whole(work: str) -> None:
    entry = WORKS[work]
    assert entry.startswith("@")
    assert entry.count("{") == entry.count("}")
    assert all(f"\n  {field}" in entry for field in ("title", "author", "year", "url"))


@pytest.mark.parametrize(
    ("header", "sentence"),
    [("---\na: [\n---\n", "begins with something that is no YAML"), ("---\nmodel-index: [1]\n---\n", "`model-index`")],
)
def test_a_spoilt_card_is_one_sentence(header: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(header)
    with pytest.raises(ValueError, match=sentence):
        read_evaluations(tmp_path)


@pytest.mark.parametrize("options", [ContrastiveOptions, MntpOptions])
@pytest.mark.parametrize(
    ("name", "value"), [("card_license", "Apache 2.0"), ("card_language", "English"), ("card_language", "en; de")]
)
def test_values_that_no_hub_knows_are_refused(options: type, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}: {value}` is not written as hubs write it"):
        make_options(options, {name: value})
    make_options(options, {"card_license": "apache-2.0", "card_language": "en, zh-Hans,de"})
