"""EleutherAI's evaluation harness with `--model ddm`, on a task file of ours."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafactory_embed.model.mask_token import MaskedTokenRecord
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


CONTEXT, CONTINUATION = [0, 54, 81], [81, 84, 274]


def summed_losses(model: Any) -> dict[int, list[float]]:
    """For every subset of hidden tokens of the continuation their summed cross entropy, by the number of them."""
    tokens = torch.tensor([*CONTEXT, *CONTINUATION])
    by_count: dict[int, list[float]] = {}
    with torch.inference_mode():  # the model is bidirectional already
        for chosen in itertools.product([False, True], repeat=3):
            if not any(chosen):
                continue
            hidden = torch.tensor([False] * len(CONTEXT) + list(chosen))
            logits = model.sampler.model(input_ids=tokens.where(~hidden, MASK)[None]).logits[0, :-1]
            losses = -logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
            by_count.setdefault(sum(chosen), []).append(float(losses[hidden[1:]].sum()))
    return by_count


def test_scores_are_means_over_all_masks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many samples both scores come to their closed forms over all subsets of hidden tokens: the bound weighs the
    sum of l losses by n/l; in the mean loss every hidden token counts 1."""
    mean_sums = {count: sum(sums) / len(sums) for count, sums in summed_losses(model).items()}
    bound = -sum(3 / count * mean for count, mean in mean_sums.items()) / 3
    mean_loss = sum(mean_sums.values()) / sum(mean_sums)
    assert -mean_loss != pytest.approx(bound / 3, rel=0.05)  # not just the bound by its length
    monkeypatch.setattr(model, "samples", 3000)
    assert model.lower_bound(CONTEXT, CONTINUATION) == pytest.approx(bound, rel=0.01)
    assert model.negative_mean_loss(CONTEXT, CONTINUATION) == pytest.approx(-mean_loss, rel=0.01)


def test_score_decides_what_the_harness_compares(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = (("", ""), CONTEXT, CONTINUATION)
    for score, compute in (("bound", model.lower_bound), ("mean_loss", model.negative_mean_loss)):
        monkeypatch.setattr(model, "score", score)
        ((value, _),) = model._loglikelihood_tokens([request], disable_tqdm=True)
        assert value == compute(CONTEXT, CONTINUATION)


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
        ({"score": "loss"}, "`score` must be bound or mean_loss, not 'loss'"),
        ({"block_size": -1}, "`block_size` must be at least 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            get_model("ddm")(pretrained="nothing", **options)


# -------------------------------------------------- block diffusion --------------------------------------------------


def make_block_model(block_size: int | None, **options: Any) -> Any:
    from lm_eval.api.registry import get_model

    steps = {"diffusion_steps": 64, "monte_carlo_samples": 4, "sampling_algorithm": "low_confidence"}
    return get_model("ddm")(
        pretrained=str(memorize(True)), device="cpu", block_size=block_size, max_new_tokens=8, **steps, **options
    )


def test_blocks_of_one_token_are_the_autoregressive_model() -> None:
    """The bound is its log-likelihood, without any error of an estimate, and what is generated is its greedy text."""
    model = make_block_model(1)
    context, continuation = [0, 54, 81], [278, 71, 5, 90]
    causal = AutoModelForCausalLM.from_pretrained(memorize(True))
    with torch.no_grad():
        logits = causal(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        exact = float(logits.gather(1, torch.tensor(continuation)[:, None]).sum())
        text = [*context]
        for _ in range(8):
            text.append(int(causal(torch.tensor([text])).logits[0, -1, : len(model.tokenizer) - 1].argmax()))
    assert model.lower_bound(context, continuation) == pytest.approx(exact, abs=1e-4)
    assert model.is_greedy(context, text[len(context) :])
    assert not model.is_greedy(context, continuation)
    (generated,) = model.sampler.complete([context])
    assert generated.tokens == list(itertools.takewhile(lambda token: token != 1, text[len(context) :]))


def test_the_blocks_of_training_are_remembered(tmp_path: Path) -> None:
    from lm_eval.api.registry import get_model

    folder = shutil.copytree(memorize(True), tmp_path / "blocks")
    MaskedTokenRecord("<mask>", MASK, shift=True, block_size=2).save(folder)
    remembered = get_model("ddm")(pretrained=str(folder), device="cpu", monte_carlo_samples=4)
    assert remembered.sampler.settings.block_size == 2
    texts = ([0, 54, 81], [278, 71, 5, 90])
    in_blocks, plain = make_block_model(2).lower_bound(*texts), make_block_model(None).lower_bound(*texts)
    assert remembered.lower_bound(*texts) == in_blocks
    assert in_blocks != pytest.approx(plain, rel=1e-3)
    switched_off = get_model("ddm")(pretrained=str(folder), device="cpu", monte_carlo_samples=4, block_size=0)
    assert switched_off.lower_bound(*texts) == plain


# ------------------------------------------------ room for both parts ------------------------------------------------


def test_a_continuation_without_room_keeps_a_token_before_it(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """With a shift its first token would not be scored otherwise, and every answer would look more likely."""
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(model, "max_length", 4)
    monkeypatch.setattr(model, "lower_bound", lambda given, _: seen.append(tuple(given)) or 0.0)
    monkeypatch.setattr(model, "is_greedy", lambda *_: False)
    requests = [(("", ""), [0, 7, 8], list(range(10, 10 + length))) for length in (1, 2, 4, 9)]
    model._loglikelihood_tokens(requests, disable_tqdm=True)
    assert seen == [(0, 7, 8), (7, 8), (8,), (8,)]


def test_new_tokens_that_leave_no_room_for_a_prompt_are_refused(model: Any) -> None:
    from lm_eval.api.instance import Instance

    request = Instance("generate_until", {}, (START, {"max_gen_toks": 5000}), 0)
    with pytest.raises(ValueError, match="`max_length: 2048` leaves no room for a prompt before 5000 new tokens"):
        model.generate_until([request], disable_tqdm=True)
