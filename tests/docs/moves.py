"""docs/move-here/*.md: what the flags of another tool are called here, and a real example, converted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from llamafactory_embed.recipe.conversions import TOOLS, render_tool, render_trainer
from llamafactory_embed.recipe.convert import convert_file


FACTS = Path(__file__).parents[1] / "published" / "facts"
MOVES = Path(__file__).parent / "moves"


@dataclass(frozen=True)
class Example:
    """A file of another tool."""

    name: str
    """Its name; one that stands in `facts/` is named with its folders there."""
    about: str
    """What it is."""
    before: str
    """What somebody who comes from there has to know first."""


EXAMPLES = {
    "sentence-transformers": Example(
        "sentence-transformers.json",
        "Training arguments (`SentenceTransformerTrainingArguments`) with the values of its page on training; the"
        " loss is chosen in Python there and is an option here (`contrastive_loss`).",
        "A training script becomes a recipe: model, loss, data and arguments are keys of one YAML file. Columns "
        "become an entry of `dataset_info.json` ([data](../data.md)); the losses are compared in "
        "[contrastive](../contrastive.md#loss). What you train here is exported to its layout by "
        "`llamafactory-embed export` ([export](../export.md)), and its models are loaded by name "
        "([presets](../presets.md)). Encoders as base models stay there: this package trains decoders.",
    ),
    "llm2vec": Example(
        "llm2vec/train_configs/supervised/MetaLlama3.json",
        "The supervised recipe of Llama-3.",
        "All its recipe files have recipes here: [originals](../originals.md#llm2vec). Its published adapters "
        "load as they are ([checkpoints](../checkpoints.md)), and what is trained here is written in its layout "
        "(`llamafactory-embed export --layout llm2vec`).",
    ),
    "tevatron": Example(
        "tevatron.sh",
        "RepLLaMA on Mistral-7B, the first command of its README.",
        "One command line becomes one recipe. Encoding is `llamafactory-embed encode` ([encode](../encode.md)), "
        "searching and judging `llamafactory-embed eval` ([evaluate](../evaluate.md)). Images, audio, video and "
        "sparse vectors stay there.",
    ),
    "ms-swift": Example(
        "ms-swift.sh",
        "Embedding training of Qwen3-Embedding-4B, after its example for embeddings.",
        "Environment variables such as `INFONCE_TEMPERATURE` become options of the recipe. A data set's objective"
        " may differ from its neighbour's in one run ([objectives](../contrastive.md#objectives-per-task)). "
        "Rerankers, images and Megatron stay there.",
    ),
    "flagembedding": Example(
        "flagembedding.sh",
        "Fine-tuning of bge-multilingual-gemma2 with a teacher's scores, after its page on fine-tuning decoders.",
        "Its JSON lines with `query`, `pos` and `neg` are read as they are; scores of a teacher, `pos_scores` and"
        " `neg_scores` there, become one list `score`, positives first ([data](../data.md)). `hn_mine.py` is "
        "`llamafactory-embed mine` ([mining](../mining.md)). Rerankers, M3's sparse and multi-vector embeddings "
        "stay there.",
    ),
    "diffullama": Example(
        "diffullama/LLaMA-Factory/examples/train_full/gpt2_full_ddm.yaml",
        "DiffuGPT: the adaptation of GPT-2 medium.",
        "Its fork of LLaMA-Factory is not needed: recipes are YAML there, too, and most keys stay. Its "
        "checkpoints load as they are ([checkpoints](../checkpoints.md)); its commands one by one: "
        "[ddm](../ddm.md).",
    ),
    "tdro": Example(
        "tdro.sh",
        "Stage 1, the weights of the tasks: the flags that its script sets, as one command.",
        "Its weight files are read and written ([tdro](../tdro.md)): one that you have goes into "
        "`dataset_weights`, and stage 1 can be left out.",
    ),
}

TRAINER = """## Flags of transformers' Trainer

Those that are not in this table keep their names.
"""


def page(tool: str) -> str:
    """The page of a tool."""
    example = EXAMPLES[tool]
    text, name = original(example)
    language = "json" if name.endswith("json") else "yaml" if name.endswith("yaml") else "bash"
    parts = [
        f"# Move here from {TOOLS[tool].title}\n",
        f"{example.before}\n",
        f"```bash\nllamafactory-embed recipe convert {name} -o mine.yaml   # as below\n"
        "llamafactory-embed recipe check mine.yaml                   # what is still missing\n```\n",
        *(f"- {remark}" for remark in TOOLS[tool].remarks),
        "",
        f"## Old flag, our key\n\n{render_tool(TOOLS[tool])}",
        f"{TRAINER}\n{render_trainer()}",
        f"## A real example\n\n{example.about} `{name}`:\n\n```{language}\n{text.rstrip()}\n```\n",
        f"Converted:\n\n```yaml\n{converted(text, name, tool).rstrip()}\n```\n",
        "This page is generated (`make docs`) from the tables that the command uses.",
    ]
    return "\n".join(parts) + "\n"


def original(example: Example) -> tuple[str, str]:
    """The text of a file of another tool, and its name. Facts are written in the format of their file."""
    path = MOVES / example.name
    if path.is_file():
        return path.read_text("utf-8"), path.name
    family, _, inside = example.name.partition("/")
    facts, name = json.loads((FACTS / f"{family}.json").read_text("utf-8"))[inside], Path(inside).name
    return json.dumps(facts, indent=2) if name.endswith(".json") else yaml.safe_dump(facts, sort_keys=False), name


def converted(text: str, name: str, tool: str) -> str:
    """What `llamafactory-embed recipe convert` makes of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        return convert_file(path, tool)
