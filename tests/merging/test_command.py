"""`llamafactory-embed merge` from its arguments to its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.merging.options import MergeOptions
from tests.merging.checkpoints import save_adapter
from tests.tiny_models import save_tiny_model


def test_the_last_checkpoints_searched_on_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_tiny_model(tmp_path / "base")
    for step in (1, 2):
        save_adapter(tmp_path / f"run/checkpoint-{step}", base, step)
    task = tmp_path / "animals.jsonl"
    rows = ["an elephant", "a teapot", "a walnut"]
    task.write_text("".join(f'{{"query": "{row}", "positive": "{row[::-1]}"}}\n' for row in rows))
    out = tmp_path / "merged"
    words = ["merge", str(tmp_path / "run"), "--last", "2", "--output", str(out), "--search", str(task)]
    assert main(words) == 0
    assert "Merged to" in capsys.readouterr().out
    assert "not a held-out one" in (out / "README.md").read_text(encoding="utf-8")
    assert Encoder(out).encode("an elephant").shape == (Encoder(out).dimension,)
    assert main([*words[:-2]]) == 1
    assert "exists: name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"checkpoints": ["a"]}, "One checkpoint is no merge"),
        ({"checkpoints": ["a", "b"], "last": 2}, "`--last` takes the output folder of one run"),
        ({"checkpoints": ["a", "b", "c"], "method": "slerp"}, "lies between two checkpoints, not 3"),
        ({"checkpoints": ["a", "b"], "weights": [1.0]}, "`--weights` has 1 weights for 2 checkpoints"),
        ({"checkpoints": ["a", "b"], "weights": [1.0, -1.0]}, "must not be negative"),
        ({"checkpoints": ["a", "b"], "weights": [1.0, 1.0], "search": ["x"]}, "`--search` chooses the weights"),
    ],
)
def test_options_that_contradict_each_other(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MergeOptions(output="out", **values)  # type: ignore[arg-type]
