"""Options of `stage: word-task`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .option import option
from .run import RunOptions


@dataclass
class WordTaskOptions(RunOptions):
    """What is predicted of each word, and from which hidden states."""

    word_task: str = option("ner", "Column of labels: ner, pos, chunk, xpos, upos, or any other column of the data.")
    train_backbone: Literal["frozen", "lora", "full"] = option(
        "frozen",
        "What learns below the classifier: nothing (frozen), a LoRA adapter, or all weights; lora and full need the "
        "same `finetuning_type`.",
    )
    attention: Literal["bidirectional", "causal"] = option(
        "bidirectional",
        "Whether a token attends to the whole text or only to the tokens before it.",
        group="Attention",
    )
    sliding_window: Literal["keep", "ignore"] = option(
        "keep",
        "Sliding window of models like Mistral: keep it, on both sides, or ignore it and attend to the whole text.",
        group="Attention",
    )
    retroactive_labels: Literal["same_token", "next_token"] = option(
        "same_token",
        "Where a word is read: at its first token (same_token), or one token before it, where models trained on the "
        "next token predict it (next_token).",
    )
    merge_subwords: bool = option(False, "Read the mean of a word's tokens instead of its first token.", group="Words")
    space_before_words: bool | None = option(
        None,
        "Put a space before every word but the first of a sentence; empty: if the tokenizer marks words by it, as "
        "those of GPT-2, Llama 3 and Qwen do.",
        group="Words",
    )
    classifier_dropout: float = option(0.1, "Dropout before the classifier.", minimum=0.0, maximum=0.99)
    cache_hidden_states: bool = option(
        True,
        "Run a frozen backbone once over all data and train the classifier on the stored hidden states.",
        group="Memory and length of the run",
        when={"train_backbone": ("frozen",)},
    )
    classifier_path: str | None = option(
        None,
        "Folder of a trained classifier to continue from or to evaluate; empty: that of the adapter or model, if it "
        "has one.",
    )
    unseen_labels: Literal["refuse", "count_as_wrong"] = option(
        "refuse", "What to do with labels of the evaluation data that the training data do not have.", group="Data"
    )
    skip_bad_rows: bool = option(
        False, "Skip and count rows that cannot be read, instead of refusing the data.", group="Data"
    )
    max_tokens_per_batch: int | None = option(
        None,
        "Most tokens of one forward; a larger batch runs as several forwards of one step. Empty: 4096 on a CPU, "
        "16384 elsewhere.",
        minimum=1,
        group="Memory and length of the run",
    )
