"""Options of `stage: word-task`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .option import option
from .run import RunOptions


@dataclass
class WordTaskOptions(RunOptions):
    """What is predicted of each word, and from which hidden states."""

    word_task: str = option(
        "ner", "The column of labels: ner, pos, chunk, xpos, upos, or any other column that the data have."
    )
    train_backbone: Literal["frozen", "lora", "full"] = option(
        "frozen", "What learns below the classifier: nothing, a LoRA adapter, or all (as `finetuning_type` says)."
    )
    attention: Literal["bidirectional", "causal"] = option(
        "bidirectional", "Whether a token sees the whole text or only what stands before it."
    )
    sliding_window: Literal["keep", "ignore"] = option(
        "keep", "What to do with the sliding window of models like Mistral: keep it, two-sided, or see the whole text."
    )
    retroactive_labels: Literal["same_token", "next_token"] = option(
        "same_token",
        "Where a word is read: at its own first token, or one token before it, as models that predict the next "
        "token have learned.",
    )
    merge_subwords: bool = option(False, "Read the mean of a word's tokens instead of the first of them.")
    space_before_words: bool | None = option(
        None,
        "Put a space before every word but a sentence's first; empty: if the tokenizer tells words apart by it, as "
        "those of GPT-2, Llama 3 and Qwen do.",
    )
    classifier_dropout: float = option(0.1, "Dropout before the classifier.", minimum=0.0, maximum=0.99)
    cache_hidden_states: bool = option(
        True, "Run a frozen backbone once over all data and train the classifier on what it gave."
    )
    classifier_path: str | None = option(
        None,
        "The folder of a trained classifier to go on with, or to evaluate; empty: that of the adapter or model, if it "
        "has one.",
    )
    unseen_labels: Literal["refuse", "count_as_wrong"] = option(
        "refuse", "What to do with a label of the evaluation data that training does not have."
    )
    skip_bad_rows: bool = option(False, "Count and leave out rows that cannot be read instead of refusing the data.")
    max_tokens_per_batch: int | None = option(
        None,
        "Most tokens of one forward; a larger batch runs as several forwards of one step. Empty: what suits the "
        "device, 1024 on a CPU (its caches) and 16384 elsewhere.",
        minimum=1,
    )
