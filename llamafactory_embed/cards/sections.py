"""The sections of a model card for people."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


LONGEST_CELL = 160  # characters of a text that a table shows
SAMPLES, DATA, SETTINGS, CITATION = "Samples of the data", "Training data", "Hyper-parameters", "Citation"

# What a stage builds on, as its authors ask to be cited.
WORKS = {
    "llamafactory": """\
@inproceedings{zheng2024llamafactory,
  title     = {{LlamaFactory}: Unified Efficient Fine-Tuning of 100+ Language Models},
  author    = {Zheng, Yaowei and Zhang, Richong and Zhang, Junhao and Ye, Yanhan and Luo, Zheyan and Feng, Zhangchi
               and Ma, Yongqiang},
  booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics
               (Volume 3: System Demonstrations)},
  year      = {2024},
  url       = {https://arxiv.org/abs/2403.13372}
}""",
    "llm2vec": """\
@inproceedings{behnamghader2024llm2vec,
  title     = {{LLM2Vec}: Large Language Models Are Secretly Powerful Text Encoders},
  author    = {BehnamGhader, Parishad and Adlakha, Vaibhav and Mosbach, Marius and Bahdanau, Dzmitry and
               Chapados, Nicolas and Reddy, Siva},
  booktitle = {First Conference on Language Modeling},
  year      = {2024},
  url       = {https://arxiv.org/abs/2404.05961}
}""",
    "infonce": """\
@misc{oord2018representation,
  title  = {Representation Learning with Contrastive Predictive Coding},
  author = {van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol},
  year   = {2018},
  url    = {https://arxiv.org/abs/1807.03748}
}""",
    "diffullama": """\
@misc{gong2024scaling,
  title  = {Scaling Diffusion Language Models via Adaptation from Autoregressive Models},
  author = {Gong, Shansan and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2410.17891}
}""",
    "tdro": """\
@misc{ma2024task,
  title  = {Task-level Distributionally Robust Optimization for Large Language Model-based Dense Retrieval},
  author = {Ma, Guangyuan and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2408.10613}
}""",
}  # fmt: skip


def property_table(properties: Mapping[str, str]) -> list[str]:
    """Two columns without a heading."""
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in properties.items())]


def metrics_section(title: str, metrics: Mapping[str, float]) -> list[str]:
    """A heading and a table; nothing where nothing was measured."""
    if not metrics:
        return []
    rows = [f"| {name.removeprefix('eval_')} | {value:.4f} |" for name, value in metrics.items()]
    return ["", f"## {title}", "", "| metric | value |", "|---|---|", *rows]


def settings_section(settings: Mapping[str, str]) -> list[str]:
    """How the model was trained."""
    return ["", f"## {SETTINGS}", "", *property_table(settings), "", "The whole recipe is in `recipe.yaml`."]


def samples_section(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of the training data as a table; nothing where there are none to show."""
    if not rows:
        return []
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return ["", f"## {SAMPLES}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *lines]


def citation_section(works: Sequence[str]) -> list[str]:
    """What to cite, as bibtex."""
    entries = "\n\n".join(WORKS[work] for work in works)
    return ["", f"## {CITATION}", "", "```bibtex", *entries.split("\n"), "```"]


def cell(text: str) -> str:
    """A text in a cell of a table, on one line and not too long."""
    line = " ".join(text.split())
    if len(line) > LONGEST_CELL:
        line = line[: LONGEST_CELL - 1].rstrip() + "…"
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def sections_of(page: str, titles: Collection[str]) -> list[str]:
    """The lines of a card's sections with these titles, in their order there."""
    lines: list[str] = []
    is_wanted = is_code = False
    for line in page.split("\n"):
        is_code ^= line.startswith("```")
        if not is_code and line.startswith(("# ", "## ")):
            is_wanted = line.removeprefix("## ") in titles
        if is_wanted:
            lines.append(line)
    return lines
