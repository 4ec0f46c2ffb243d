"""How well words are labelled: by entity, as seqeval counts them, and word by word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file


CUT = "(not read)"
"""The prediction of a word that truncation has cut off."""


def is_of_entities(labels: Sequence[str]) -> bool:
    """Whether labels mark the words of entities: `B-`, `I-` (`E-`, `S-`) and `O`."""
    marked = [label for label in labels if label != "O"]
    return bool(marked) and all(label[:2] in ("B-", "I-", "E-", "S-") for label in marked)


def word_metrics(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Accuracy over words, always; of entities precision, recall and F1, all together (`f1`) and by type (`f1_PER`);
    of other labels the mean of their F1 (`macro_f1`). A word that was not read counts as wrong."""
    pairs = [(g, p) for each in zip(gold, predicted, strict=True) for g, p in zip(*each, strict=True)]
    metrics = {"accuracy": sum(g == p for g, p in pairs) / max(1, len(pairs)), "words": float(len(pairs))}
    if not is_of_entities(sorted({g for g, _ in pairs})):
        scores = per_label(gold, predicted)
        metrics["macro_f1"] = float(np.mean([each["f1"] for each in scores.values() if each["support"]] or [0.0]))
        return metrics

    from seqeval.metrics import classification_report  # imports scikit-learn

    labels = [["O" if label == CUT else label for label in sentence] for sentence in predicted]
    report = classification_report([list(each) for each in gold], labels, output_dict=True, zero_division=0)
    overall = report.pop("micro avg")
    metrics |= {"precision": overall["precision"], "recall": overall["recall"], "f1": overall["f1-score"]}
    kinds = [name for name in report if not name.endswith(" avg")]
    metrics |= {f"f1_{kind}": report[kind]["f1-score"] for kind in kinds}
    return {name: float(value) for name, value in metrics.items()}


def per_label(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of every label, word by word."""
    pairs = Counter((g, p) for each in zip(gold, predicted, strict=True) for g, p in zip(*each, strict=True))
    support, predictions = Counter[str](), Counter[str]()
    for (g, p), count in pairs.items():
        support[g] += count
        predictions[p] += count
    table = {}
    for label in sorted({*support, *predictions} - {CUT}):
        right = pairs[label, label]
        precision = right / predictions[label] if predictions[label] else 0.0
        recall = right / support[label] if support[label] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        table[label] = {"precision": precision, "recall": recall, "f1": f1, "support": float(support[label])}
    return table


def format_table(table: dict[str, dict[str, float]]) -> str:
    """The table of labels for people."""
    width = max((len(label) for label in table), default=5)
    lines = [f"{'label':<{width}}  precision  recall     f1  words"]
    for label, row in table.items():
        scores = f"{row['precision']:9.4f}  {row['recall']:6.4f} {row['f1']:6.4f}"
        lines.append(f"{label:<{width}}  {scores} {int(row['support']):6d}")
    return "\n".join(lines)


def draw_confusions(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], path: Path) -> None:
    """A picture of which label was taken for which; each row is a label's words, in shares."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pairs: Any = Counter((g, p) for each in zip(gold, predicted, strict=True) for g, p in zip(*each, strict=True))
    labels = sorted({label for pair in pairs for label in pair})
    counts = np.array([[pairs[g, p] for p in labels] for g in labels], dtype=float)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 2.5 + 0.35 * len(labels)
    figure, axes = pyplot.subplots(figsize=(side, side))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    figure.colorbar(image, label="share of the label's words")
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
