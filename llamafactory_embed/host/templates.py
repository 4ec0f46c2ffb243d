"""Seam: chat templates. Those of Dream's and LLaDA's instruct models write a turn as Qwen and Llama 3 do.

What ends a turn does not replace EOS in the tokenizer: these models know both, and fill up what follows an answer with
EOS tokens.
"""

from __future__ import annotations

import copy
from types import ModuleType

from . import contract


def apply(template: ModuleType) -> None:
    """Add `dream` and `llada`; a host that has them keeps its own."""
    templates = contract.attribute(template, "TEMPLATES")
    for name, like, changes in (
        ("dream", "qwen", {"default_system": "You are a helpful assistant.", "replace_eos": False}),
        ("llada", "llama3", {"stop_words": ["<|eot_id|>"], "replace_eos": False}),
    ):
        if name not in templates:
            templates[name] = copy.deepcopy(templates[like])
            for attribute, value in changes.items():
                contract.attribute(templates[name], attribute)
                setattr(templates[name], attribute, value)
