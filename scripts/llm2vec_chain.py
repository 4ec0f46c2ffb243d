"""LLM2Vec's chain on bundled data, measured: retrieval before and after each of its three steps, and without them.

    python scripts/llm2vec_chain.py            # from the root of the repository; the figures of docs/mntp.md

Runs the recipes of examples/quickstart through LLaMA-Factory, in this process, and prints a table.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from llamafactory.train.tuner import run_exp
from omegaconf import OmegaConf

from llamafactory_embed.demo.smollm2 import prepare_smollm2


RECIPES = Path("examples/quickstart")
OUTPUT = Path("saves/llm2vec_chain")
METRICS = ("ndcg@10", "recall@100")


def read(name: str, **changes: Any) -> dict[str, Any]:
    """A recipe of the chain, its adapters and its output below `OUTPUT`."""
    recipe: dict[str, Any] = dict(OmegaConf.load(RECIPES / f"prose_{name}.yaml"))
    if "adapter_name_or_path" in recipe:
        recipe["adapter_name_or_path"] = recipe["adapter_name_or_path"].replace("saves/", f"{OUTPUT}/")
    return recipe | {"output_dir": str(OUTPUT / f"prose_{name}")} | changes


def run(name: str, title: str, **changes: Any) -> dict[str, Any]:
    """Perform a step; its metrics at the end."""
    recipe = {key: value for key, value in read(name, **changes).items() if value is not None}
    start = time.perf_counter()
    run_exp(recipe)
    found = json.loads(Path(recipe["output_dir"], "eval_results.json").read_text(encoding="utf-8"))
    return {"title": title, "seconds": time.perf_counter() - start, **found}


def evaluate_only(title: str, **changes: Any) -> dict[str, Any]:
    """Retrieval with a model as it is."""
    options = {"do_train": False, "eval_on_start": False, "eval_strategy": "no", "create_new_adapter": None}
    return run("supervised", title, output_dir=str(OUTPUT / "evaluated"), **(options | changes))


def main() -> None:
    """All steps, and what they are to be compared with."""
    prepare_smollm2(Path(read("mntp")["model_name_or_path"]), layers=6)
    plain = {"adapter_name_or_path": None, "finetuning_type": "full"}
    rows = [
        evaluate_only("the model as it is, causal", attention="causal", **plain),
        evaluate_only("the model as it is, bidirectional", **plain),
    ]
    language_model = run("mntp", "masked next-token prediction")
    rows += [
        evaluate_only("+ mntp", adapter_name_or_path=str(OUTPUT / "prose_mntp")),
        run("simcse", "+ mntp + SimCSE"),
        run("supervised", "+ mntp + SimCSE + supervised"),
        run("supervised", "supervised alone", adapter_name_or_path=None, output_dir=str(OUTPUT / "supervised_alone")),
    ]
    (OUTPUT / "figures.json").write_text(json.dumps([language_model, *rows], indent=2) + "\n", encoding="utf-8")

    print(
        f"\nmntp: {', '.join(f'{key} {language_model[key]:.3f}' for key in language_model if key.startswith('eval'))}"
    )
    print(f"\n| model | {' | '.join(METRICS)} | seconds |\n|---|{'---|' * len(METRICS)}---|")
    for row in rows:
        values = " | ".join(f"{row[f'eval_{metric}']:.3f}" for metric in METRICS)
        print(f"| {row['title']} | {values} | {row['seconds']:.0f} |")


if __name__ == "__main__":
    main()
