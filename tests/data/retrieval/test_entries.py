"""Entries of `dataset_info.json` are checked key by key."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_embed.data.retrieval.entries import make_entry


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"formatting": "alpaca", "file_name": "a"}, "has `formatting: alpaca`; this stage reads `retrieval`"),
        ({"file_name": "a", "instuction": "x"}, "key `instuction` is not known; did you mean `instruction`"),
        ({"file_name": "a", "columns": {"postive": "b"}}, "did you mean `positive`"),
        ({"file_name": "a", "symmetric": "yes"}, "`symmetric` must be true or false"),
        ({"file_name": "a", "instruction": [1]}, "`instruction` must be text"),
        ({"file_name": "a", "instruction": ["find", "half \ud83d"]}, "`instruction` holds half a character"),
        ({"file_name": "a", "corpus": 1}, "`corpus` must be the path of a file, or an object with `file_name`"),
        ({"file_name": "a", "corpus": {"subset": "b"}}, "`corpus` must be the path of a file, or an object"),
        ({"file_name": "a", "queries": {"file_name": "b", "splt": "c"}}, "`splt` of `queries` .* mean `split`"),
        ({"file_name": "a", "corpus": {"file_name": "b", "columns": {"txt": "c"}}}, "did you mean `text`"),
        ({"file_name": "a", "columns": {"positive_ids": "pos"}}, "names `positive_ids`; name their texts with"),
        (
            {"file_name": "a", "corpus": "b", "columns": {"positive_ids": "pos", "positive": "p"}},
            "`columns` names `positive` and `positive_ids`; name the one that is there",
        ),
        ({"ms_hub_url": "a"}, "needs `file_name` or `hf_hub_url`"),
        ({"file_name": True}, "`file_name` must be text, not True"),
        ({"file_name": "a", "split": 1}, "`split` must be text, not 1"),
        ({"file_name": "a", "columns": ["query"]}, "`columns` must be an object"),
        ({"file_name": "a", "columns": {"query": 1}}, "`columns` must name a column for `query` by text, not 1"),
        ({"file_name": "a", "num_samples": 0}, "`num_samples` must be a whole number of rows above 0, not 0"),
        ({"file_name": "a", "num_samples": True}, "`num_samples` must be a whole number of rows above 0, not True"),
        ({"file_name": "a", "corpus": {"file_name": None}}, "`corpus`: `file_name` must be text, not None"),
    ],
)
def test_entries_are_checked(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_entry("it", {"formatting": "retrieval", **settings}, "data")
