"""What runs and jobs leave to go on from, and files of numbers: each may have been damaged, or come from anybody."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from llamafactory_embed.chain.run import RECORD_NAME, read_done
from llamafactory_embed.data.packed_tokens import HEADER, MAGIC, read_rows
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.teacher_vectors import TeacherVectors
from llamafactory_embed.encoding.vector_files import UnfinishedVectors, write_npy_header
from llamafactory_embed.loading.whole_checkpoints import newest_whole_checkpoint
from llamafactory_embed.materials.update import MANIFEST, read_manifest
from llamafactory_embed.train.evaluation_log import lines_up_to
from tests.hostile.strategies import bad_bytes, changed, cut, flipped, json_files, texts, values
from tests.hostile.verdict import a_result_or_a_sentence, hostile


WEIGHTS = save({"a": np.ones((2, 3), np.float32)})
header = st.dictionaries(texts, values, max_size=2).map(lambda value: json.dumps(value).encode())
lying_weights = header.map(lambda text: struct.pack("<Q", len(text)) + text) | flipped(WEIGHTS) | bad_bytes
resumed = st.fixed_dictionaries(
    {},
    optional={
        "contents.json": json_files(st.fixed_dictionaries({"files": st.dictionaries(texts, values, max_size=2)})),
        "trainer_state.json": json_files(changed({"global_step": 1, "log_history": []})),
        "model.safetensors": lying_weights,
        "model.safetensors.index.json": json_files(
            st.fixed_dictionaries({"weight_map": st.dictionaries(texts, texts | values, max_size=2) | values})
        ),
        "optimizer.pt": bad_bytes,
        "scheduler.pt": bad_bytes,
    },
)


@hostile(60)
@given(resumed)
def test_checkpoints_to_resume_from(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "checkpoint-3")
        checkpoint.mkdir()
        for name, content in files.items():
            (checkpoint / name).write_bytes(content)
        with a_result_or_a_sentence("checkpoints to resume from"):
            newest_whole_checkpoint(folder)


DONE = {"first": {"fingerprint": "0" * 64, "seconds": 1.0}}
PROGRESS = {"settings": {"source": "a", "input": "2 texts"}, "rows": 1}


def vectors(rows: int) -> bytes:
    file = io.BytesIO()
    write_npy_header(file, (2, 3), np.dtype(np.float32))
    return file.getvalue() + np.ones((rows, 3), np.float32).tobytes()


@hostile(30)
@given(
    json_files(st.dictionaries(texts, changed(DONE["first"]) | values, max_size=2)),
    json_files(changed(PROGRESS)),
    st.just(vectors(1)) | flipped(vectors(1)) | bad_bytes,
    json_files(st.fixed_dictionaries({"files": st.dictionaries(texts, values, max_size=2)})),
    json_files(changed({"step": 1, "eval_loss": 0.5})),
)
def test_jobs_that_go_on(done: bytes, progress: bytes, left: bytes, manifest: bytes, log: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / RECORD_NAME).write_bytes(done)
        with a_result_or_a_sentence("chain.json"):
            read_done(folder)
        (folder / MANIFEST).write_bytes(manifest)
        with a_result_or_a_sentence("manifest of init"):
            read_manifest(folder)
        with a_result_or_a_sentence("log of evaluations"):
            lines_up_to(3, log.decode("utf-8", "replace") + "\n")
        unfinished = UnfinishedVectors(folder / "v.npy", PROGRESS["settings"])  # type: ignore[arg-type]
        unfinished.progress.write_bytes(progress)
        unfinished.path.write_bytes(left)
        try:
            with a_result_or_a_sentence("vectors to go on from"):
                unfinished.find(start_anew=False)
                unfinished.open((2, 3), np.dtype(np.float32))
        finally:
            unfinished.close()


def npy(dtype: str) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((2, 3), dtype))
    return file.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


odd_headers = st.sampled_from(
    [f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},)}}" for shape in (2**62, -1, "2, 2, 2", 10**30)]
    + ["{'descr': 'O', 'fortran_order': False, 'shape': (2, 3)}", "{'descr': '<f4'", "(" * 900, "__import__('os')", ""]
    + ["{'descr': [('a', '<f4')], 'fortran_order': 1, 'shape': 3}", "{'descr': 3, 'fortran_order': 0, 'shape': 'a'}"]
).map(npy_header)
PACKED = HEADER.pack(MAGIC, 1, 8, 4) + np.arange(4, dtype=np.uint16).tobytes()


def read_teacher(path: Path) -> None:
    entry = make_entry("rows", {"file_name": "rows.jsonl", "formatting": "retrieval", "teacher_vectors": path.name},
                       str(path.parent))  # fmt: skip
    opened = TeacherVectors.of(entry).vectors
    assert opened is not None
    assert opened.ndim == 3


NUMBERS: dict[str, tuple[st.SearchStrategy[bytes], Callable[[Path], Any]]] = {
    "teacher.npy": (flipped(npy("float32")) | odd_headers | cut(st.just(npy("object"))) | bad_bytes, read_teacher),
    "packed.bin": (flipped(PACKED) | bad_bytes, lambda path: list(read_rows(str(path), 2, 0))),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_files_of_numbers(name: str, tmp_path: Path) -> None:
    contents, read = NUMBERS[name]
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "positive": "b"}\n', encoding="utf-8")

    @hostile(60)
    @given(contents)
    def check(content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with a_result_or_a_sentence(name):
            read(path)

    check()
