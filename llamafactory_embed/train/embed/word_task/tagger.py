"""A language model or encoder and a classifier: tokenized sentences in, label scores for every word out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModel, PretrainedConfig, PreTrainedTokenizerBase

from attention_patch import Backend, patch_attention

from ....data.words.tokenization import TokenizedSentence, WordTokenizer
from ....hparams.word_task import WordTaskOptions
from ....loading.backbone import (
    LoadedBackbone,
    attention_backend,
    hub_options,
    load_backbone_for_training,
    load_config,
)
from ....loading.weights import weights_must_fit
from ....model.around_decoder import AroundDecoder
from ....model.packed import fill_rows, forward_packed, pack_texts, split_texts, tokens_per_batch
from .record import WordTaskRecord, load_classifier


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


@dataclass(frozen=True)
class SentenceGroup:
    """Sentences of a micro-batch that run in one forward."""

    sentences: list[TokenizedSentence]
    places: list[int]
    """Their numbers in the micro-batch."""

    @classmethod
    def filler(cls, like: SentenceGroup) -> SentenceGroup:
        """A forward as short as can be, in which no word is read. It still belongs to the graph, as engines that
        gather parameters need in the backward."""
        return cls([TokenizedSentence(like.sentences[0].token_ids[:1], words=[], spans=[])], like.places[:1])


class WordTagger(AroundDecoder):
    """Dropout and a linear layer on the hidden states of words.

    Decoders run packed, under the attention that the recipe asks for; encoders keep their attention and run padded.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_labels: int,
        *,
        attention: Literal["bidirectional", "causal"] = "bidirectional",
        sliding_window: Literal["keep", "ignore"] = "keep",
        merge_subwords: bool = False,
        dropout: float = 0.1,
        is_frozen: bool = True,
        max_tokens: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(backbone)
        self.is_encoder = is_encoder(self.decoder.config)
        if self.is_encoder and attention == "causal":
            raise ValueError(
                f"`attention: causal` is not supported by {type(self.decoder).__name__}, which reads in both "
                "directions: leave it out."
            )
        if not self.is_encoder:
            patch_attention(backbone, attention, sliding_window=sliding_window, backend=backend)
        self.merge_subwords = merge_subwords
        self.is_frozen = is_frozen
        self.max_tokens = max_tokens
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.decoder.config.hidden_size, num_labels)
        for parameter in self._unused_parameters():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> WordTagger:
        """A frozen backbone stays as it is served, without dropout."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def group(self, sentences: Sequence[TokenizedSentence]) -> list[SentenceGroup]:
        """The sentences of a micro-batch by forwards of at most `max_tokens` tokens, longest first."""
        lengths = [len(sentence.token_ids) for sentence in sentences]
        order = sorted(range(len(sentences)), key=lambda index: -lengths[index])
        limit = tokens_per_batch(self.max_tokens, self.device, training=self.training)
        if self.is_encoder:
            rows = fill_padded(lengths, order, limit)
        else:
            rows = fill_rows([sentence.token_ids for sentence in sentences], order, limit)
        return [SentenceGroup([sentences[index] for index in row], row) for row in rows]

    def forward(self, groups: Sequence[SentenceGroup], states: Tensor | None = None) -> Tensor:
        """Scores [W, labels] of all words that are read, sentence after sentence; `states` are their hidden states, if
        these have been computed before."""
        if states is None:
            states = self.word_states(groups)
        return self.classifier(self.dropout(states.to(self.classifier.weight)))

    def word_states(self, groups: Sequence[SentenceGroup]) -> Tensor:
        """Hidden states [W, d] of the words, sentence after sentence."""
        words: list[tuple[int, Tensor]] = []
        for group in groups:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
                tokens = [sentence.token_ids for sentence in group.sentences]
                texts = self._encode_padded(tokens) if self.is_encoder else self._decode_packed(tokens)
            words += [
                (place, self._read(states, sentence))
                for place, states, sentence in zip(group.places, texts, group.sentences, strict=True)
            ]
        return torch.cat([states for _, states in sorted(words, key=lambda item: item[0])])

    def _read(self, states: Tensor, sentence: TokenizedSentence) -> Tensor:
        """Token states [L, d] → word states [W, d]."""
        spans = torch.tensor(sentence.spans, device=states.device, dtype=torch.long).view(-1, 2)  # [W, 2]
        if not self.merge_subwords:
            return states[spans[:, 0]]
        lengths = spans[:, 1] - spans[:, 0]  # [W]
        tokens = [token for start, end in sentence.spans for token in range(start, end)]
        owners = torch.arange(len(spans), device=states.device).repeat_interleave(lengths)
        sums = states.new_zeros(len(spans), states.shape[-1]).index_add(0, owners, states[tokens])
        return sums / lengths.unsqueeze(1)

    def _decode_packed(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token states of each text, [L, d]."""
        (batch,) = pack_texts(texts)
        (states,) = forward_packed(self.decoder, batch)
        return split_texts(states, batch, len(texts))

    def _encode_padded(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token states of each text, [L, d]."""
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        states = self.decoder(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [states[row, : len(text)] for row, text in enumerate(texts)]

    def _unused_parameters(self) -> list[nn.Parameter]:
        """All of a frozen backbone; otherwise what is not part of the transformer: the language-model head."""
        if self.is_frozen:
            return list(self.backbone.parameters())
        used = {id(parameter) for parameter in self.decoder.parameters()}
        return [parameter for parameter in self.backbone.parameters() if id(parameter) not in used]


def fill_padded(lengths: Sequence[int], order: list[int], max_tokens: int) -> Iterator[list[int]]:
    """The indices of the texts of each padded batch, of falling lengths; a text that is too long gets its own."""
    while order:
        count = max(1, max_tokens // lengths[order[0]])
        row, order = order[:count], order[count:]
        yield row


def is_encoder(config: PretrainedConfig) -> bool:
    """Whether the architecture was made to be read in both directions (BERT, DeBERTa, ModernBERT, …)."""
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING


def load_tagger(
    tokenizer: WordTokenizer,
    labels: list[str],
    trained: Path | None,
    options: WordTaskOptions,
    model_args: ModelArguments,
    finetuning_args: FinetuningArguments,
    training_args: TrainingArguments,
) -> tuple[WordTagger, WordTaskRecord]:
    """The model of a recipe, with the classifier in the folder `trained` if there is one, and what its checkpoints
    remember."""
    loaded = load_word_backbone(tokenizer.tokenizer, options, model_args, finetuning_args, training_args)
    tagger = WordTagger(
        loaded.model,
        len(labels),
        attention=options.attention,
        sliding_window=options.sliding_window,
        merge_subwords=options.merge_subwords,
        dropout=options.classifier_dropout,
        is_frozen=options.train_backbone == "frozen",
        max_tokens=options.max_tokens_per_batch,
        backend=attention_backend(model_args.flash_attn),
    )
    if trained is not None:
        WordTaskRecord.load(trained).check_read_alike(options, tokenizer.space_before_words, trained)
        tagger.classifier.load_state_dict(load_classifier(trained))
    record = WordTaskRecord(
        word_task=options.word_task,
        labels=labels,
        attention=options.attention,
        sliding_window=options.sliding_window,
        retroactive_labels=options.retroactive_labels,
        merge_subwords=options.merge_subwords,
        space_before_words=tokenizer.space_before_words,
        base_model=model_args.model_name_or_path,
        merged_adapters=loaded.merged_adapters,
    )
    return tagger, record


def load_word_backbone(
    tokenizer: PreTrainedTokenizerBase,
    options: WordTaskOptions,
    model_args: ModelArguments,
    finetuning_args: FinetuningArguments,
    training_args: TrainingArguments,
) -> LoadedBackbone:
    """The model below the classifier: a decoder as the host loads it, or an encoder. All adapters are merged into a
    frozen one."""
    if options.train_backbone == "frozen":
        training_args = copy.copy(training_args)
        training_args.do_train = False
    config = load_config(model_args)
    if not is_encoder(config):
        return load_backbone_for_training(tokenizer, model_args, finetuning_args, training_args)

    # The host loads only models with a language-model head, which DeBERTa does not have.
    dtype = model_args.compute_dtype if training_args.do_train else model_args.infer_dtype
    with weights_must_fit():
        model: Any = AutoModel.from_pretrained(
            model_args.model_name_or_path,
            dtype=dtype,
            trust_remote_code=model_args.trust_remote_code,
            **hub_options(model_args),
        )
    adapters = list(model_args.adapter_name_or_path or [])
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter, subfolder=model_args.adapter_folder or "").merge_and_unload()
    if training_args.do_train and options.train_backbone == "lora":
        model = get_peft_model(model, lora_config(finetuning_args))
    return LoadedBackbone(model, [model_args.model_name_or_path, *adapters][-1], adapters)


def lora_config(finetuning_args: FinetuningArguments) -> LoraConfig:
    """The host's LoRA options for a model that is not a language model."""
    targets = finetuning_args.lora_target
    return LoraConfig(
        r=finetuning_args.lora_rank,
        lora_alpha=finetuning_args.lora_alpha,
        lora_dropout=finetuning_args.lora_dropout,
        target_modules="all-linear" if "all" in targets else targets,
        use_rslora=finetuning_args.use_rslora,
        use_dora=finetuning_args.use_dora,
    )
