"""EleutherAI's evaluation harness with `--model ddm`, on a task file of ours."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sampling.memory import MASK, TEXT, memorize
from tests.tiny_models import tiny_tokenizer


lm_eval = pytest.importorskip("lm_eval")
START = "To be prepared"
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "{{ends}}",
        "target_delimiter": "",
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{start}}",
        "doc_to_target": "{{ends[1]}}",
        "generation_kwargs": {"until": ["peace"], "max_gen_toks": 36},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def model() -> Any:
    from lm_eval.api.registry import get_model

    kind = get_model("ddm")
    return kind(pretrained=str(memorize(True)), device="cpu", diffusion_steps=36, monte_carlo_samples=16)


@pytest.mark.parametrize("name", list(TASKS))
def test_task(name: str, model: Any, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    end = TEXT.removeprefix(START)
    right = end if name == "choice" else end.partition("peace")[0]
    documents = [{"start": START, "ends": [" for peace.", right, " is good."]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents), "utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task | TASKS[name]), "utf-8")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0)
    (score,) = [value for key, value in results["results"][name].items() if key.startswith(("acc,", "exact_match,"))]
    assert score == 1


def test_bound_is_the_mean_over_all_masks(model: Any) -> None:
    """With many samples the estimate comes to the sum over all subsets of hidden tokens, computed one by one."""
    context, continuation = [0, 54, 81], [278, 71, 5]
    tokens = torch.tensor([*context, *continuation])
    by_count: dict[int, list[float]] = {}
    with torch.inference_mode():  # the model is bidirectional already
        for chosen in itertools.product([False, True], repeat=3):
            if not any(chosen):
                continue
            hidden = torch.tensor([False] * 3 + list(chosen))
            logits = model.sampler.model(input_ids=tokens.where(~hidden, MASK)[None]).logits[0, :-1]
            losses = -logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
            by_count.setdefault(sum(chosen), []).append(3 / sum(chosen) * float(losses[hidden[1:]].sum()))
    expected = -sum(sum(sums) / len(sums) for sums in by_count.values()) / 3
    samples, model.samples = model.samples, 3000
    assert model.lower_bound(context, continuation) == pytest.approx(expected, rel=0.01)
    model.samples = samples


def test_what_is_known_by_heart_is_likely_and_greedy(model: Any) -> None:
    tokens = tiny_tokenizer()(TEXT)["input_ids"]
    ((likely, is_greedy), (unlikely, is_not)) = model._loglikelihood_tokens(
        [(("", ""), tokens[:6], tokens[6:12]), (("", ""), tokens[:6], tokens[12:18])], disable_tqdm=True
    )
    assert is_greedy
    assert not is_not
    assert likely > unlikely + 10


def test_long_texts_are_scored_in_windows(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.instance import Instance

    scored: list[int] = []
    monkeypatch.setattr(model, "max_length", 8)
    monkeypatch.setattr(model, "lower_bound", lambda context, continuation: scored.append(len(continuation)) or -1.0)
    request = Instance("loglikelihood_rolling", {}, (TEXT,), 0)
    (total,) = model.loglikelihood_rolling([request], disable_tqdm=True)
    assert sum(scored) == len(model.tok_encode(TEXT))
    assert total == -math.ceil(sum(scored) / 8)


def test_options_are_checked() -> None:
    from lm_eval.api.registry import get_model

    for options, sentence in (
        ({"difusion_steps": 3}, "difusion_steps is no option"),
        ({"diffusion_steps": 0}, "`diffusion_steps` must be at least 1"),
        ({"batch_size": "auto"}, "`batch_size` must be a number"),
    ):
        with pytest.raises(ValueError, match=sentence):
            get_model("ddm")(pretrained="nothing", **options)
