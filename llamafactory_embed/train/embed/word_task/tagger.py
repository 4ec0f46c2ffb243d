"""A language model or encoder and a classifier: tokenized sentences in, label scores a word out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig

from attention_patch import Backend, patch_attention

from ....data.words.tokenization import TokenizedSentence
from ....model.around_decoder import AroundDecoder
from ....model.packed import forward_packed, pack_texts, split_texts, tokens_per_batch


def is_encoder(config: PretrainedConfig) -> bool:
    """Whether the architecture was made to be read in both directions (BERT, DeBERTa, ModernBERT, …)."""
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING


class WordTagger(AroundDecoder):
    """Dropout and a linear layer on the hidden states of words.

    Decoders run packed, under the attention that is asked for; encoders, whose attention is their own, run padded.
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
                f"`attention: causal` cannot be had with {type(self.decoder).__name__}, which reads in both "
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

    def forward(self, sentences: Sequence[TokenizedSentence], states: Tensor | None = None) -> Tensor:
        """Scores [W, labels] of all words that are read; `states` are theirs if they have been computed before."""
        if states is None:
            states = self.word_states(sentences)
        return self.classifier(self.dropout(states.to(self.classifier.weight)))

    def word_states(self, sentences: Sequence[TokenizedSentence]) -> Tensor:
        """Hidden states [W, d] of the words, sentence after sentence."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            texts = self._encode_padded(sentences) if self.is_encoder else self._decode_packed(sentences)
        words = [self._read(states, each) for states, each in zip(texts, sentences, strict=True)]
        return torch.cat(words)

    def _read(self, states: Tensor, sentence: TokenizedSentence) -> Tensor:
        """Token states [L, d] → word states [W, d]."""
        starts = torch.tensor([start for start, _ in sentence.spans], device=states.device, dtype=torch.long)
        if not self.merge_subwords:
            return states[starts]
        lengths = torch.tensor([end - start for start, end in sentence.spans], device=states.device)
        tokens = [token for start, end in sentence.spans for token in range(start, end)]
        owners = torch.arange(len(starts), device=states.device).repeat_interleave(lengths)
        sums = states.new_zeros(len(starts), states.shape[-1]).index_add(0, owners, states[tokens])
        return sums / lengths.unsqueeze(1)

    def _decode_packed(self, sentences: Sequence[TokenizedSentence]) -> list[Tensor]:
        ids = [sentence.token_ids for sentence in sentences]
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        for batch in pack_texts(ids, tokens_per_batch(self.max_tokens, self.device)):
            (states,) = forward_packed(self.decoder, batch)
            texts = split_texts(states, batch, len(ids))
            for index in batch.text_indices:
                found[index] = texts[index]
        return found

    def _encode_padded(self, sentences: Sequence[TokenizedSentence]) -> list[Tensor]:
        order = sorted(range(len(sentences)), key=lambda index: -len(sentences[index].token_ids))
        found: list[Tensor] = [torch.empty(0)] * len(sentences)
        limit = tokens_per_batch(self.max_tokens, self.device)
        while order:
            longest = len(sentences[order[0]].token_ids)
            count = max(1, limit // longest)
            chosen, order = order[:count], order[count:]
            ids = torch.zeros(len(chosen), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(chosen):
                tokens = sentences[index].token_ids
                ids[row, : len(tokens)] = torch.tensor(tokens)
                mask[row, : len(tokens)] = 1
            states = self.decoder(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
            for row, index in enumerate(chosen):
                found[index] = states[row, : len(sentences[index].token_ids)]
        return found

    def _unused_parameters(self) -> list[nn.Parameter]:
        """All of a frozen backbone; otherwise what stands beside the transformer, a language-model head."""
        if self.is_frozen:
            return list(self.backbone.parameters())
        used = {id(parameter) for parameter in self.decoder.parameters()}
        return [parameter for parameter in self.backbone.parameters() if id(parameter) not in used]
