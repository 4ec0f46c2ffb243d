"""The memory of a training step as torch allocates it, beside the estimate of `llamafactory-embed recipe new`.

A real recipe runs two steps on a CPU, in float32. What the model and the optimizer keep is counted tensor by tensor;
what the second step takes above it, activations, gradients and everything in between, is the peak of torch's own
record of allocations. `python -m benchmarks.step_memory` writes `benchmarks/results/step_memory.json`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, TrainerCallback

from llamafactory_embed.files import write_json
from llamafactory_embed.recipe.memory import ModelShape, StepMemory, StepSettings, estimate_step

from .inputs import ModelSize, save_model, texts_of_lengths
from .processes import ROOT
from .training import write_dataset


MIB = 2**20
SMOLLM2_135M = ModelSize(30, 576, 1536, 9, 3, 49152, 1024)
SMALL = ModelSize(6, 384, 1024, 6, 2, 8192, 1024)
# Shape, and rows of a batch.
MODELS = {"6 layers of 384": (SMALL, 16), "SmolLM2-135M's shape": (SMOLLM2_135M, 4)}
RESULTS = ROOT / "benchmarks" / "step_memory.json"
MARK = "<!-- step memory -->"
HIDDEN_SHARE = {"mntp": 0.2, "ddm": 0.5}
TEXT_TOKENS = 48
TOKENS_OF_FORWARD = 1024  # so that a batch is several forwards
TRAINED_VOCABULARY = 8192
LORA = {"finetuning_type": "lora", "lora_rank": 16, "lora_target": "all"}
FULL = {"finetuning_type": "full"}
KEPT = {"disable_gradient_checkpointing": True}
CONTRASTIVE = {"stage": "contrastive", "attention": "bidirectional", "num_negatives": 1, "query_template": "{text}"}
CASES: dict[str, dict[str, Any]] = {
    "contrastive, full, checkpointing": CONTRASTIVE | FULL,
    "contrastive, full": CONTRASTIVE | FULL | KEPT,
    "contrastive, LoRA, checkpointing": CONTRASTIVE | LORA,
    "contrastive, LoRA": CONTRASTIVE | LORA | KEPT,
    "contrastive, LoRA, GradCache": CONTRASTIVE | LORA | KEPT | {"grad_cache_tokens": 512},
    "mntp, LoRA": {"stage": "mntp", "mask_token": "eos"} | LORA | KEPT,
    "ddm, full, checkpointing": {"stage": "ddm", "mask_token": "eos"} | FULL,
}


class StepRecord(TrainerCallback):
    """What the second step allocates, and what is there before it."""

    def __init__(self) -> None:
        self.profile: Any = None
        self.kept = 0
        self.peak = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from torch.profiler import ProfilerActivity, profile

        if state.global_step == 1:
            self.kept = bytes_of_model(kwargs["model"]) + bytes_of_optimizer(kwargs["optimizer"])
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.profile is not None:
            self.profile.__exit__(None, None, None)
            self.peak = peak_of(self.profile)
            self.profile = None


def bytes_of_model(model: Any) -> int:
    """Parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(each.numel() * each.element_size() for each in {id(tensor): tensor for tensor in tensors}.values())


def bytes_of_optimizer(optimizer: Any) -> int:
    """What an optimizer keeps for each parameter."""
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors = [value for state in inner.state.values() for value in state.values() if hasattr(value, "element_size")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_of(profile: Any) -> int:
    """The highest sum of the allocations so far; what was there before counts as 0."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest


def run_case(material: Mapping[str, str], options: Mapping[str, Any], rows: int) -> dict[str, int]:
    """Two steps of a recipe; bytes that are kept, and those of the second step above them."""
    from llamafactory.train.tuner import run_exp

    record = StepRecord()
    with tempfile.TemporaryDirectory() as output_dir:
        recipe = {
            "model_name_or_path": material["model"],
            "do_train": True,
            "dataset": "triplets" if options["stage"] == "contrastive" else "documents",
            "dataset_dir": material["data"],
            "template": "default",
            "cutoff_len": TEXT_TOKENS if options["stage"] == "contrastive" else 3 * TEXT_TOKENS,
            "output_dir": output_dir,
            "per_device_train_batch_size": rows,
            "max_tokens_per_batch": TOKENS_OF_FORWARD,
            "max_steps": 2,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **options,
        }
        run_exp(recipe, callbacks=[record])
    return {"kept": record.kept, "step": record.peak}


def make_material(folder: Path, size: ModelSize, rows: int) -> dict[str, str]:
    """A model, and texts of equal lengths: triplets, and documents as long as a triplet."""
    trained = min(size.vocabulary, TRAINED_VOCABULARY)
    model = save_model(folder / "model", dataclasses.replace(size, vocabulary=trained))
    tokenizer = AutoTokenizer.from_pretrained(model)
    if size.vocabulary > trained:
        enlarge_vocabulary(model, size.vocabulary)
    texts = texts_of_lengths(tokenizer, [TEXT_TOKENS] * (6 * rows))
    triplets = [{"query": a, "positive": b, "negative": c} for a, b, c in zip(*[iter(texts)] * 3, strict=True)]
    data = write_dataset(folder / "data", triplets)
    documents = texts_of_lengths(tokenizer, [3 * TEXT_TOKENS - 1] * (2 * rows), seed=1)  # and EOS
    (data / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    info = json.loads((data / "dataset_info.json").read_text("utf-8"))
    info["documents"] = {"file_name": "documents.jsonl", "columns": {"prompt": "text"}}
    (data / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    return {"model": str(model), "data": str(data)}


def enlarge_vocabulary(folder: Path, vocabulary: int) -> None:
    """An embedding with more rows than the tokenizer has tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(folder)


def measure_models() -> list[dict[str, Any]]:
    """All cases of all models, one after another in this process: torch's own record of allocations knows nothing of
    what other runs have left."""
    measured = []
    for name, (size, rows) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            material = make_material(Path(folder), size, rows)
            for case, options in CASES.items():
                measured.append({"model": name, "rows": rows, "case": case, **run_case(material, options, rows)})
                print(measured[-1], flush=True)
    return measured


def estimate_of(run: Mapping[str, Any]) -> StepMemory:
    """The estimate for a recorded run."""
    return estimate_case(MODELS[run["model"]][0], run["case"], run["rows"])


def estimate_case(size: ModelSize, case: str, rows: int) -> StepMemory:
    """The estimate of a case, from the shape and the recipe alone."""
    options = CASES[case]
    shape = ModelShape(
        size.hidden_size,
        size.layers,
        size.intermediate_size,
        size.heads,
        size.key_value_heads,
        size.hidden_size // size.heads,
        size.vocabulary,
        tied=True,
    )
    predicts = options["stage"] != "contrastive"
    settings = StepSettings(
        options["finetuning_type"],
        tokens=3 * TEXT_TOKENS * rows,
        tokens_of_forward=options.get("grad_cache_tokens", TOKENS_OF_FORWARD),
        rank=options.get("lora_rank", 0),
        half_precision=False,
        checkpointing="disable_gradient_checkpointing" not in options,
        grad_cache="grad_cache_tokens" in options,
        predicts_tokens=predicts,
        hidden_share=HIDDEN_SHARE.get(options["stage"], 0.0),
        uses_head=predicts,
    )
    return estimate_step(shape, settings)


def write_table(page: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Measured and estimated, between the marks of docs/recipes.md."""
    lines = ["| model | recipe | kept, MiB | step, MiB | estimated step | ratio |", "|---|---|---|---|---|---|"]
    for run in runs:
        estimate = estimate_of(run).step_peak
        cells = [f"{run['kept'] / MIB:.0f}", f"{run['step'] / MIB:.0f}", f"{estimate / MIB:.0f}"]
        lines.append(f"| {run['model']} | {run['case']} | {' | '.join(cells)} | {estimate / run['step']:.2f} |")
    text = page.read_text(encoding="utf-8")
    start, end = text.index(MARK) + len(MARK), text.index("<!-- end -->", text.index(MARK))
    page.write_text(f"{text[:start]}\n" + "\n".join(lines) + f"\n{text[end:]}", encoding="utf-8")


if __name__ == "__main__":
    if "--only-docs" not in sys.argv:
        write_json(
            RESULTS, {"machine": "2 AMD EPYC cores, busy", "text_tokens": TEXT_TOKENS, "runs": measure_models()}
        )
    write_table(ROOT / "docs" / "recipes.md", json.loads(RESULTS.read_text("utf-8"))["runs"])
