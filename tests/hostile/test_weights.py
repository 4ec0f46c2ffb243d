"""Files of weights that are cut off, lie about their lengths, or are pickles."""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from llamafactory_embed.loading.attention_pool import PARAMETERS, AttentionPoolShape
from llamafactory_embed.model.tensor_files import load_safetensors, load_without_code, read_shapes
from tests.hostile.strategies import DEEP_JSON, bad_bytes, flipped, values
from tests.hostile.verdict import a_result_or_a_sentence, hostile


class Mark:
    """An object whose unpickling would leave a file."""

    def __reduce__(self) -> Any:
        return open, ("unpickled", "w")


def torch_file(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


WEIGHTS = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
GOOD = save(WEIGHTS)
GOOD_TORCH = torch_file({f"model.{name}": torch.ones(2, 2) for name in PARAMETERS})
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "I8", "X"]) | values,
        "shape": st.lists(st.integers(-1, 2**62), max_size=3),
    },
    optional={"data_offsets": st.lists(st.integers(-1, 2**62), max_size=3) | values},
)
headers = (st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), tensors | values, max_size=3)).map(json.dumps)
lying = st.tuples(st.integers(0, 2**64 - 1) | st.none(), headers | st.sampled_from(DEEP_JSON)).map(
    lambda parts: struct.pack("<Q", len(parts[1]) if parts[0] is None else parts[0]) + parts[1].encode() + b"\0" * 24
)


@hostile(80)
@given(flipped(GOOD) | lying | bad_bytes)
def test_safetensors(content: bytes) -> None:
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp", "hostile.safetensors")
    path.write_bytes(content)
    with a_result_or_a_sentence("safetensors, the header"):
        read_shapes(path)
    with a_result_or_a_sentence("safetensors, the weights"):
        load_safetensors(path)
    path.unlink()


pickles = st.sampled_from(
    [pickle.dumps(Mark()), torch_file({"a": Mark()}), torch_file([1]), torch_file({"a": 1}), torch_file(WEIGHTS),
     torch_file(WEIGHTS, _use_new_zipfile_serialization=False),
     torch_file({"a": Mark()}, _use_new_zipfile_serialization=False)]
)  # fmt: skip


def test_torch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    @hostile(60)
    @given(flipped(GOOD_TORCH) | pickles | bad_bytes, st.sampled_from(["cpu", "meta"]))
    def read(content: bytes, device: str) -> None:
        path = Path("attn_pool.pt")
        path.write_bytes(content)
        with a_result_or_a_sentence("torch files"):
            load_without_code(path, device)
        with a_result_or_a_sentence("attn_pool.pt"):
            AttentionPoolShape.of_file(path)

    read()
    assert not Path("unpickled").exists()
