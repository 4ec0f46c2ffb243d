"""A tiny diffusion language model that knows one text by heart, trained in seconds."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from attention_patch import patch_attention
from llamafactory_embed.model.mask_token import MaskedTokenRecord
from tests.tiny_models import tiny_config, tiny_tokenizer


TEXT = "To be prepared for war is a means of preserving peace."
ROOM = 16  # for EOS behind the text, which is learned like the text
MASK = 300  # added to the tokenizer
STEPS = 400
ROWS = 8


@functools.cache
def memorize(shift: bool) -> Path:
    """The folder of a checkpoint, made once a process."""
    from transformers import AutoModelForCausalLM

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    whole = torch.tensor([*tokenizer(TEXT)["input_ids"], *[tokenizer.eos_token_id] * ROOM])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("gpt2", vocab_size=310))  # its learned positions learn fast
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with patch_attention(model, "bidirectional"):
        for step in range(STEPS):
            text = whole[: len(whole) - step % (ROOM + 1)]
            hidden = torch.rand(ROWS, len(text)) < torch.rand(ROWS, 1)
            hidden[:, 0] = False  # BOS is given
            logits = model(input_ids=text.where(~hidden, MASK), use_cache=False).logits
            if shift:
                logits, hidden = logits[:, :-1], hidden[:, 1:]
            labels = (text[1:] if shift else text).expand(ROWS, -1)
            loss = cross_entropy(logits[hidden], labels[hidden])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = Path(tempfile.mkdtemp(prefix="memorized-"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    MaskedTokenRecord(mask_token="<mask>", mask_token_id=MASK, shift=shift).save(folder)
    return folder
