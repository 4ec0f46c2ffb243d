"""How good predictions are: exact matches, answers to word problems, BLEU and ROUGE as the host computes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec

from ..evaluation.answers import MARKER, answer_accuracy


logger = logging.getLogger(__name__)

# What the host's metrics of its stage `sft` are made of.
SIMILARITY_PACKAGES = ("jieba", "nltk", "rouge_chinese")


def score_predictions(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Metrics in percent, over the rows that have a label; none without labels."""
    pairs = [(prediction, label) for prediction, label in zip(predictions, labels, strict=True) if label.strip()]
    if not pairs:
        return {}
    metrics = {
        "predict_exact_match": 100
        * sum(prediction.strip() == label.strip() for prediction, label in pairs)
        / len(pairs)
    }
    problems = [(prediction, label) for prediction, label in pairs if MARKER in label]
    if problems:
        metrics["predict_answer_match"] = 100 * answer_accuracy(*map(list, zip(*problems, strict=True)))
    return metrics | similarity(pairs)


def similarity(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """BLEU-4 and ROUGE by the host's own function, where its packages are installed."""
    missing = [name for name in SIMILARITY_PACKAGES if find_spec(name) is None]
    if missing:
        logger.info("BLEU and ROUGE are left out: pip install %s.", " ".join(missing).replace("_", "-"))
        return {}
    import numpy as np
    from llamafactory.train.sft.metric import ComputeSimilarity
    from transformers import EvalPrediction

    compute = ComputeSimilarity(tokenizer=_TextsAsTokens([text for pair in pairs for text in pair]))
    rows = np.arange(2 * len(pairs)).reshape(-1, 2)
    scores = compute(EvalPrediction(predictions=rows[:, :1], label_ids=rows[:, 1:]))
    return {f"predict_{name}": float(score) for name, score in (scores or {}).items()}


class _TextsAsTokens:
    """The host's metric decodes tokens; ours are texts already, and each is a token of this tokenizer."""

    pad_token_id = 0

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def batch_decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        return [self.texts[row[0]] for row in rows]
