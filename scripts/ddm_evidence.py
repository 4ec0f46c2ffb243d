"""From an autoregressive model to one that answers by diffusion, measured: the figures of docs/ddm.md.

    python scripts/ddm_evidence.py --seeds 42 43 44            # from the root of the repository

For each seed the quick start's `ddm` run with attention open at once and opening step by step; then the first seed's
model (and the autoregressive one itself) learns to sort digits. Results go to `results.md` in the output folder; what
is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from llamafactory_embed.demo.smollm2 import prepare_smollm2


QUICK_STARTS = Path(__file__).parents[1] / "examples" / "quickstart"
ANNEALING = (1, 50)  # `anneal_steps`
LAYERS = 6

Row = dict[str, Any]


def perform(recipe: str, output: Path, **changes: Any) -> None:
    """Run a quick start into `output`, unless it has been run."""
    if (output / "all_results.json").is_file():
        return
    from llamafactory.train.tuner import run_exp

    print(f"== {output}", flush=True)
    run_exp(dict(OmegaConf.load(QUICK_STARTS / recipe)) | {"output_dir": str(output)} | changes)


def read(output: Path, file: str = "all_results.json") -> Row:
    found: Row = json.loads((output / file).read_text("utf-8"))
    return found


def annealing_table(folder: Path, seeds: Sequence[int]) -> list[str]:
    """The bound of the held-out prose before and after, by how attention opens."""
    lines = ["| `anneal_steps` | bits per token before | after | by seed |", "|---|---|---|---|"]
    for steps in ANNEALING:
        runs = [folder / f"ddm_{steps}_{seed}" for seed in seeds]
        history = [read(run, "trainer_state.json")["log_history"] for run in runs]
        before = np.mean([next(e["eval_bits_per_token"] for e in each if "eval_loss" in e) for each in history])
        after = [read(run)["eval_bits_per_token"] for run in runs]
        spread = f" ± {np.std(after, ddof=1):.2f}" if len(after) > 1 else ""
        by_seed = " / ".join(f"{each:.2f}" for each in after)
        lines.append(f"| {steps} | {before:.2f} | {np.mean(after):.2f}{spread} | {by_seed} |")
    return lines


def sorting_table(folder: Path, starts: dict[str, Path]) -> list[str]:
    """Exact match of the sorted digits, by the model that it began with."""
    lines = ["| start | exact match, 200 unseen numbers | loss of the last steps |", "|---|---|---|"]
    for name in starts:
        run = folder / f"sorting_{name}"
        history = [each["loss"] for each in read(run, "trainer_state.json")["log_history"] if "loss" in each]
        match = read(run)["predict_exact_match"]
        lines.append(f"| {name} | {match:.1f} % | {history[-1]:.4f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("saves/ddm_evidence"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=100, help="of adaptation")
    parser.add_argument("--sorting-steps", type=int, default=400, help="of learning to sort")
    arguments = parser.parse_args(argv)

    folder, first = arguments.output, arguments.seeds[0]
    model = prepare_smollm2(Path("models") / f"smollm2-{LAYERS}-layers", layers=LAYERS)
    # The first run of each table first, so that the longest chain is there early.
    starts = {"ddm": folder / f"ddm_1_{first}", "autoregressive": model}
    plain = {"model_name_or_path": str(model), "max_steps": arguments.steps, "plot_loss": False}
    perform("prose_ddm.yaml", starts["ddm"], **plain, seed=first, anneal_steps=1)
    for name, start in starts.items():
        perform(
            "sorting_ddm-sft.yaml", folder / f"sorting_{name}",
            model_name_or_path=str(start), max_steps=arguments.sorting_steps, plot_loss=False,
        )  # fmt: skip
    for seed in arguments.seeds:
        for steps in ANNEALING:
            perform("prose_ddm.yaml", folder / f"ddm_{steps}_{seed}", **plain, seed=seed, anneal_steps=steps)
    table = "\n".join([*annealing_table(folder, arguments.seeds), "", *sorting_table(folder, starts)]) + "\n"
    (folder / "results.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
