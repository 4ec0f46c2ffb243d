"""Our Encoder inside of the real mteb: the scores that others compute on the same vectors, on every way to them."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import pytrec_eval
import torch
from datasets import Dataset
from mteb._create_dataloaders import create_dataloader
from mteb.models import EncoderProtocol, SearchProtocol
from mteb.models.search_wrappers import SearchEncoderWrapper

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval import beir as beir_files
from llamafactory_embed.data.retrieval.entries import Entry
from llamafactory_embed.data.retrieval.texts import read_texts
from llamafactory_embed.evaluation import mteb_encoder
from llamafactory_embed.evaluation.chunks import split_documents
from llamafactory_embed.evaluation.in_training import rank_documents, retrieval_metrics
from llamafactory_embed.evaluation.local import load_entry, load_path
from llamafactory_embed.evaluation.models import load_encoder, wrap_encoder
from llamafactory_embed.evaluation.options import EvaluationOptions
from llamafactory_embed.evaluation.revisions import name_of_folder, revision_of_checkpoint
from llamafactory_embed.evaluation.tasks import texts_of
from llamafactory_embed.loading.checkpoint import save_checkpoint
from tests.embedders import PROSE, make_embedder
from tests.evaluation.conftest import write_lines
from tests.tiny_models import tiny_tokenizer


WORDNET = Path(__file__).parents[2] / "data" / "wordnet" / "heldout" / "gloss_to_noun"

LOCAL = frozenset({WORDNET.name, "following_lines"})

Wrap = Callable[..., Any]


@pytest.fixture
def wrap(checkpoint: Path, tmp_path: Path) -> Wrap:
    """The checkpoint as mteb's model, with some options of an evaluation."""

    def wrap_with(size: int | None = None, prompts: dict[str, str] | None = None, **options: Any) -> Any:
        chosen = EvaluationOptions(
            checkpoints=[str(checkpoint)], tasks=["x"], **({"vectors": str(tmp_path / "vectors")} | options)
        )
        encoder = Encoder(checkpoint, device="cpu")
        return wrap_encoder(encoder, "runs/embedder", "r", size, prompts or {}, chosen, LOCAL)

    return wrap_with


def run(model: Any, task: Any, **options: Any) -> dict[str, Any]:
    result = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False, **options)
    ((scores,),) = result.task_results[0].scores.values()
    return scores


@pytest.fixture(scope="module")
def wordnet() -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Queries, corpus and judgements of a bundled task, read without our task's code."""
    queries, corpus = (
        {key: text for key, text, _ in read_texts(str(WORDNET / name))}
        for name in (beir_files.QUERIES, beir_files.CORPUS)
    )
    relevant: dict[str, dict[str, int]] = {}
    for _, (query, document, grade) in beir_files.read_judgements(str(WORDNET / "qrels" / "test.tsv")):
        relevant.setdefault(query, {})[document] = int(grade)
    return queries, corpus, relevant


@pytest.fixture(scope="module")
def vectors(wordnet: Any, checkpoint: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the queries and the corpus, straight from the Encoder."""
    encoder = Encoder(checkpoint, device="cpu")
    return encoder.encode(list(wordnet[0].values()), role="query"), encoder.encode(list(wordnet[1].values()))


def test_it_has_both_of_mtebs_protocols(wrap: Wrap) -> None:
    model = wrap()
    assert isinstance(model, EncoderProtocol)
    assert isinstance(model, SearchProtocol)
    model.close()


def test_scores_are_those_of_trec_eval_of_sentence_transformers_and_of_training(
    wrap: Wrap, wordnet: Any, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    queries, corpus, relevant = wordnet
    scores = run(wrap(), load_path(str(WORDNET)).task)

    similar = vectors[0] @ vectors[1].T
    runs = {
        query: {document: float(score) for document, score in zip(corpus, row, strict=True)}
        for query, row in zip(queries, similar, strict=True)
    }
    trec = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10", "recall.100"}).evaluate(runs)
    ndcg = np.mean([each["ndcg_cut_10"] for each in trec.values()])
    assert scores["ndcg_at_10"] == pytest.approx(ndcg, abs=1e-5)
    assert scores["recall_at_100"] == pytest.approx(np.mean([e["recall_100"] for e in trec.values()]), abs=1e-5)
    assert ndcg > 0.001  # not the nDCG of nothing

    positions = {document: place for place, document in enumerate(corpus)}
    found = [frozenset(positions[document] for document in relevant[query]) for query in queries]
    ranking = rank_documents(torch.from_numpy(vectors[0]), torch.from_numpy(vectors[1]), depth=100)
    assert retrieval_metrics(ranking, found)["ndcg@10"] == pytest.approx(ndcg, abs=1e-5)

    assert ndcg_of_sentence_transformers(wordnet, vectors) == pytest.approx(ndcg, abs=1e-5)


def ndcg_of_sentence_transformers(wordnet: Any, vectors: tuple[np.ndarray, np.ndarray]) -> float:
    evaluation = pytest.importorskip("sentence_transformers.evaluation")
    queries, corpus, relevant = wordnet

    class Vectors:
        """A model that knows the vectors already."""

        def encode_query(self, texts: list[str], **kwargs: Any) -> Any:
            known = dict(zip(queries.values(), vectors[0], strict=True))
            return torch.from_numpy(np.stack([known[text] for text in texts]))

        def encode_document(self, texts: list[str], **kwargs: Any) -> Any:
            known = dict(zip(corpus.values(), vectors[1], strict=True))
            return torch.from_numpy(np.stack([known[text] for text in texts]))

    judge = evaluation.InformationRetrievalEvaluator(
        queries,
        corpus,
        {query: set(documents) for query, documents in relevant.items()},
        write_csv=False,
        score_functions={"cosine": lambda one, other: one @ other.T},
    )
    return judge.compute_all_metrics(Vectors())["cosine"]["ndcg@k"][10]


def numbers(scores: dict[str, Any]) -> dict[str, float]:
    """Scores without mteb's notes, and without its measures of confidence, which few queries leave undefined."""
    return {name: value for name, value in scores.items() if isinstance(value, float) and not name.startswith("nauc")}


def test_our_search_finds_what_mtebs_own_search_finds(wrap: Wrap, beir: Path) -> None:
    model = wrap()
    task = load_path(str(beir)).task
    ours = run(model, task)

    class OnlyEncodes:
        """The same model without its own search."""

        def __init__(self, *args: Any) -> None:
            self.mteb_model_meta = model.mteb_model_meta
            self.encode, self.similarity = model.encode, model.similarity
            self.similarity_pairwise = model.similarity_pairwise

    theirs = run(SearchEncoderWrapper(OnlyEncodes()), load_path(str(beir)).task)
    assert numbers(ours) == pytest.approx(numbers(theirs), abs=1e-6)
    assert len(numbers(ours)) > 20


def test_candidates_are_scored_like_a_search_among_them(wrap: Wrap, beir: Path) -> None:
    model = wrap()
    split = load_path(str(beir)).task.dataset["default"]["test"]
    about = {"task_metadata": load_path(str(beir)).task.metadata}
    model.index(split["corpus"], **about)
    everything = model.search(split["queries"], top_k=1000, **about)
    candidates = {query: list(scores)[2:9:3] for query, scores in everything.items()}
    found = model.search(split["queries"], top_k=1000, top_ranked=candidates, **about)
    assert found == {
        query: pytest.approx({document: everything[query][document] for document in documents}, abs=1e-6)
        for query, documents in candidates.items()
    }


def test_documents_that_are_excluded_for_a_query_make_room_for_others(wrap: Wrap, beir: Path) -> None:
    """As in BRIGHT, where the candidates of a query are a corpus without a few documents."""
    model = wrap(top_k=3)
    task = load_path(str(beir)).task
    split = task.dataset["default"]["test"]
    about = {"task_metadata": task.metadata}
    model.index(split["corpus"], **about)
    unlimited = wrap(vectors=str(model._vectors.parent / "others"))
    unlimited.index(split["corpus"], **about)
    ranked = {query: list(scores) for query, scores in unlimited.search(split["queries"], top_k=1000, **about).items()}
    excluded = {query: set(documents[: number % 3]) for number, (query, documents) in enumerate(ranked.items())}
    candidates = {query: [key for key in split["corpus"]["id"] if key not in excluded[query]] for query in ranked}
    found = model.search(split["queries"], top_k=1000, top_ranked=candidates, **about)
    assert {query: list(scores) for query, scores in found.items()} == {
        query: [key for key in documents if key not in excluded[query]][:3] for query, documents in ranked.items()
    }
    model.close()
    unlimited.close()


def similarities_of(model: Any, task: Any) -> np.ndarray:
    """What the model's search says of every query and document, [Q, D]."""
    split = task.dataset["default"]["test"]
    model.index(split["corpus"], task_metadata=task.metadata)
    found = model.search(split["queries"], top_k=1000, task_metadata=task.metadata)
    model.close()
    return np.array([[found[query][document] for document in split["corpus"]["id"]] for query in found])


def test_sizes_and_prompts_change_what_is_compared(
    wrap: Wrap, checkpoint: Path, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mteb_encoder, "DOCUMENTS_AT_ONCE", 4)
    encoder = Encoder(checkpoint, device="cpu")
    task = load_path(str(beir)).task
    split = task.dataset["default"]["test"]
    queries, corpus = split["queries"]["text"], split["corpus"]["text"]

    def similarities(model: Any) -> np.ndarray:
        return similarities_of(model, task)

    whole = encoder.encode(queries, role="query") @ encoder.encode(corpus).T
    np.testing.assert_allclose(similarities(wrap()), whole, atol=1e-5)
    cut = encoder.encode(queries, role="query", dimensions=8) @ encoder.encode(corpus, dimensions=8).T
    np.testing.assert_allclose(similarities(wrap(size=8)), cut, atol=1e-5)
    assert not np.allclose(cut, whole, atol=1e-2)

    asked = encoder.encode(queries, task="next_line") @ encoder.encode(corpus).T
    prompt = encoder.config.instructions["next_line"]
    np.testing.assert_allclose(similarities(wrap(prompts={"query": prompt})), asked, atol=1e-5)

    faiss = similarities(wrap(index="Flat"))
    np.testing.assert_allclose(faiss, whole, atol=1e-5)


def test_templates_and_lengths_of_the_options_win_over_the_trained_ones(
    checkpoint: Path, beir: Path, tmp_path: Path
) -> None:
    """Also where a run with the trained ones has left its vectors."""
    task = load_path(str(beir)).task
    split = task.dataset["default"]["test"]
    instruction = "Find the line after"
    encoder = Encoder(checkpoint, device="cpu")
    tokenizer = encoder.tokenizer.tokenizer

    def similarities(**options: Any) -> np.ndarray:
        chosen = EvaluationOptions(checkpoints=["x"], tasks=["x"], vectors=str(tmp_path), devices=["cpu"], **options)
        prompts = {"query": instruction}
        return similarities_of(
            wrap_encoder(load_encoder(checkpoint, chosen), "a/b", "r", None, prompts, chosen, LOCAL), task
        )

    def first_tokens(text: str, count: int) -> str:
        end = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][:count][-1][1]
        return text[:end]

    trained = similarities()
    joined = [f"{instruction} {text}" for text in split["queries"]["text"]]
    documents = encoder.encode(split["corpus"]["text"])
    expected = encoder.encode(joined, role="query") @ documents.T
    np.testing.assert_allclose(similarities(query_template="llm2vec"), expected, atol=1e-5)
    assert not np.allclose(expected, trained, atol=1e-2)

    cut = [first_tokens(text, 5) for text in split["corpus"]["text"]]
    queries = encoder.encode([first_tokens(text, 5) for text in split["queries"]["text"]], prompt=instruction)
    expected = queries @ encoder.encode(cut).T
    np.testing.assert_allclose(similarities(text_max_length=5), expected, atol=1e-5)

    special = len(encoder.tokenizer.documents([""])[0].token_ids)
    expected = encoder.encode(split["queries"]["text"], prompt=instruction) @ encoder.encode(cut).T
    np.testing.assert_allclose(similarities(document_max_length=5 + special), expected, atol=1e-5)
    np.testing.assert_allclose(similarities(), trained, atol=1e-6)


def test_documents_of_symmetric_data_carry_the_instruction(wrap: Wrap, checkpoint: Path, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"query": a, "positive": b} for a, b in itertools.pairwise(PROSE)])
    prompt = "Find the line that is alike"
    task = load_entry(Entry("following_lines", str(rows), instructions=(prompt,), symmetric=True)).task
    split = task.dataset["default"]["test"]
    encoder = Encoder(checkpoint, device="cpu")
    queries = encoder.encode(split["queries"]["text"], prompt=prompt)
    expected = queries @ encoder.encode(split["corpus"]["text"], prompt=prompt, role="document").T
    np.testing.assert_allclose(similarities_of(wrap(), task), expected, atol=1e-5)
    assert not np.allclose(expected, queries @ encoder.encode(split["corpus"]["text"]).T, atol=1e-2)


def test_inner_products_and_templates_are_those_of_the_checkpoint(tmp_path: Path, beir: Path) -> None:
    written = {"query_template": "ask: {text}", "document_template": "passage: {text}"}
    embedder = make_embedder(similarity="dot", normalize_embeddings=False, **written)
    encoder = Encoder(embedder, tiny_tokenizer())
    options = EvaluationOptions(checkpoints=["x"], tasks=["x"], vectors=str(tmp_path))
    model = wrap_encoder(encoder, "a/b", "r", None, {}, options, LOCAL)
    task = load_path(str(beir)).task
    split = task.dataset["default"]["test"]
    queries, documents = (
        encoder.encode(split["queries"]["text"], role="query"),
        encoder.encode(split["corpus"]["text"]),
    )
    np.testing.assert_allclose(similarities_of(model, task), queries @ documents.T, rtol=1e-4)
    np.testing.assert_allclose(model.similarity(queries, documents), queries @ documents.T, rtol=1e-4)
    pairs = model.similarity_pairwise(queries, documents[: len(queries)])
    np.testing.assert_allclose(pairs, (queries * documents[: len(queries)]).sum(1), rtol=1e-4)
    assert np.abs(queries @ documents.T).max() > 2  # no cosines


def test_a_long_document_is_found_by_a_part_that_truncation_loses(tmp_path: Path) -> None:
    folder = tmp_path / "short"
    save_checkpoint(make_embedder(document_max_length=24, query_template="{text}"), folder)
    tiny_tokenizer().save_pretrained(folder)
    encoder = Encoder(folder, device="cpu")
    needle = encoder.tokenizer.tokenizer.decode(
        encoder.tokenizer.tokenizer(PROSE[5], add_special_tokens=False)["input_ids"][:20]
    )
    corpus = [" ".join(PROSE[6:12]) + needle, *PROSE[:5]]
    rows = mteb_dataset({str(number): text for number, text in enumerate(corpus)})
    queries = mteb_dataset({"q": needle})
    about = {"task_metadata": load_path(str(WORDNET)).task.metadata}
    best = {}
    for long_documents in ("truncate", "chunk"):
        options = EvaluationOptions(
            checkpoints=[str(folder)], tasks=["x"], vectors=str(tmp_path / "v"), long_documents=long_documents
        )
        model = wrap_encoder(encoder, "a/b", "r", None, {}, options, LOCAL)
        model.index(rows, **about)
        best[long_documents] = model.search(queries, top_k=10, **about)["q"]["0"]
        among = model.search(queries, top_k=10, top_ranked={"q": ["3", "0"]}, **about)["q"]["0"]
        assert among == pytest.approx(best[long_documents], abs=1e-6)
        model.close()
    assert best["chunk"] > best["truncate"] + 0.01


def test_the_end_of_a_long_document_with_an_instruction_is_found(tmp_path: Path) -> None:
    prompt = "Find the line that is alike"
    needle = PROSE[5][:30]
    corpus = [" ".join(PROSE[6:12]) + needle, *PROSE[:2]]
    rows = write_lines(tmp_path / "rows.jsonl", [{"query": needle, "positive": text} for text in corpus])
    task = load_entry(Entry("alike", str(rows), instructions=(prompt,), symmetric=True)).task
    encoder = Encoder(make_embedder(document_max_length=48, query_max_length=48), tiny_tokenizer())
    options = EvaluationOptions(
        checkpoints=["x"], tasks=["x"], vectors=str(tmp_path / "vectors"), long_documents="chunk"
    )
    model = wrap_encoder(encoder, "a/b", "r", None, {}, options, frozenset({"alike"}))
    split = task.dataset["default"]["test"]
    model.index(split["corpus"], task_metadata=task.metadata)
    found = model.search(split["queries"], top_k=10, task_metadata=task.metadata)
    model.close()
    parts = split_documents(encoder, split["corpus"]["text"], prompt)
    vectors = encoder.encode(parts.texts, prompt=prompt, role="document")
    similar = vectors @ encoder.encode(needle, prompt=prompt)
    best = {
        document: pytest.approx(similar[parts.owners == place].max(), abs=1e-5)
        for place, document in enumerate(split["corpus"]["id"])
    }
    assert found == {split["queries"]["id"][0]: best}


def mteb_dataset(texts: dict[str, str]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"id": list(texts), "text": list(texts.values())})


def test_an_interrupted_run_continues(wrap: Wrap, beir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mteb_encoder, "EMBEDDED_AT_ONCE", 5)
    encode = Encoder.encode
    asked: list[str] = []
    broken = True

    def counted(self: Encoder, texts: Any, **kwargs: Any) -> Any:
        if broken and len(asked) >= 10:
            raise KeyboardInterrupt
        asked.extend(texts)
        return encode(self, texts, **kwargs)

    monkeypatch.setattr(Encoder, "encode", counted)
    model = wrap()
    with pytest.raises(KeyboardInterrupt):
        run(model, load_path(str(beir)).task)
    model.close()
    before, broken = list(asked), False
    scores = run(wrap(), load_path(str(beir)).task)
    assert before
    assert not set(asked[len(before) :]) & set(before) - set(queries_of(beir))
    assert scores == run(wrap(vectors=str(beir.parent / "fresh")), load_path(str(beir)).task)


def queries_of(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "queries.jsonl").read_text().splitlines()]


@pytest.mark.process
def test_several_processes_find_what_one_finds(wrap: Wrap, beir: Path, tmp_path: Path) -> None:
    one = run(wrap(), load_path(str(beir)).task)
    model = wrap(devices=["cpu", "cpu"], vectors=str(tmp_path / "other"))
    try:
        assert model.devices == ["cpu", "cpu"]
        assert numbers(run(model, load_path(str(beir)).task)) == pytest.approx(numbers(one), abs=1e-5)
    finally:
        model.close()


def test_what_is_written_about_the_model(wrap: Wrap) -> None:
    model = wrap(size=8, long_documents="chunk", top_k=200, query_template="llm2vec")
    meta = model.mteb_model_meta
    assert meta.name == "runs/embedder"
    assert list(meta.embed_dim) == [8, 16, 32]
    digest = meta.experiment_kwargs.pop("query_template")
    assert len(digest) == 8  # mteb makes it a part of a path
    assert meta.experiment_kwargs == {"dimensions": 8, "long_documents": "chunk", "top_k": 200}
    assert meta.n_parameters == sum(each.numel() for each in model.encoder.model.parameters())
    model.close()


def test_a_size_that_was_not_trained_is_refused(wrap: Wrap) -> None:
    with pytest.raises(ValueError, match="`dimensions: 9` was not trained; this model has 8, 16, 32"):
        wrap(size=9)


def test_the_revision_changes_with_the_weights_and_not_with_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-10"
    save_checkpoint(make_embedder(seed=0), folder)
    before = revision_of_checkpoint(folder)
    (folder / "README.md").write_text("a card")
    (folder / "optimizer.pt").write_text("a state")
    assert revision_of_checkpoint(folder) == before
    save_checkpoint(make_embedder(seed=1), folder)
    assert revision_of_checkpoint(folder) != before
    assert name_of_folder(folder) == "run/checkpoint-10"


def test_the_revision_of_an_adapter_is_also_that_of_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_checkpoint(make_embedder(seed=0), base)
    folder = tmp_path / "adapter"
    save_checkpoint(make_embedder(lora_dropout=0.0, base_model=str(base)), folder)
    before = revision_of_checkpoint(folder)
    save_checkpoint(make_embedder(seed=1), base)
    assert revision_of_checkpoint(folder) != before


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("mteb").setLevel(logging.ERROR)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": [" a text ", "b", ""]},
        {"title": ["", "Title", " "], "text": ["a text", "b ", "c"]},
        {"text": ["a", "b", "c"], "body": ["d", "e", "f"]},
    ],
)
def test_documents_are_joined_as_mteb_joins_them(columns: dict[str, list[str]]) -> None:
    about = load_path(str(WORDNET)).task.metadata
    rows = Dataset.from_dict({"id": ["1", "2", "3"]} | columns)
    document = mteb.types.PromptType.document
    loader = create_dataloader(rows, task_metadata=about, prompt_type=document, batch_size=2)
    assert texts_of(rows, about, document) == [text for batch in loader for text in batch["text"]]
