"""Put an instruction around a text and remember where the text lies: pooling may leave the instruction out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptedText:
    """What the model reads is `prefix + text + suffix`; truncation shortens the text and keeps the other two."""

    prefix: str
    text: str
    suffix: str = ""

    @property
    def string(self) -> str:
        return self.prefix + self.text + self.suffix


@dataclass(frozen=True)
class PromptTemplate:
    """How a text with an instruction is written, and how one without."""

    with_instruction: str
    without_instruction: str = "{text}"
    keeps_white_space: bool = False

    def render(self, text: str, instruction: str = "") -> PromptedText:
        """Instructions are sentences: white space around them is dropped, but not around a prompt (`verbatim`). An
        empty string means no instruction."""
        template = self.with_instruction if instruction else self.without_instruction
        prefix, suffix = template.split("{text}")
        instruction = instruction if self.keeps_white_space else instruction.strip()
        return PromptedText(
            prefix.replace("{instruction}", instruction), text, suffix.replace("{instruction}", instruction)
        )


VERBATIM = "verbatim"

# The templates that published embedders use, by the name a recipe may give instead of a template.
TEMPLATES = {
    # Wang et al. 2024, "Improving Text Embeddings with Large Language Models"; also tDRO's prompts
    "e5": "Instruct: {instruction}\nQuery: {text}",
    # BehnamGhader et al. 2024, LLM2Vec, as `encode` joins an instruction and a text
    "llm2vec": "{instruction} {text}",
    # the same, as LLM2Vec joins them while training on the public E5 data
    "llm2vec_e5_data": "{instruction}; {text}",
    # sentence-transformers: the instruction is a prompt, and every character of it counts
    VERBATIM: "{instruction}{text}",
}


def parse_template(template: str, option: str = "query_template") -> PromptTemplate:
    """Read a template from a recipe: a name from `TEMPLATES`, or a string that holds `{text}`.

    A template with `{instruction}` is for texts that have an instruction, and others stay as they are; one without is
    for all texts (`query: {text}`).
    """
    keeps_white_space = template == VERBATIM
    template = TEMPLATES.get(template, template)
    if template.count("{text}") != 1:
        raise ValueError(
            f"`{option}` must contain {{text}} once, or be one of {', '.join(TEMPLATES)}, not {template!r}."
        )
    unknown = [name for name in re.findall(r"\{\w+\}", template) if name not in ("{text}", "{instruction}")]
    if unknown:
        raise ValueError(f"`{option}` may hold {{instruction}} and {{text}}, not {unknown[0]}.")
    if "{instruction}" in template:
        return PromptTemplate(template, keeps_white_space=keeps_white_space)
    return PromptTemplate(template, without_instruction=template)


def prompt_texts(
    texts: Sequence[str], instructions: Sequence[str] | str, template: PromptTemplate
) -> list[PromptedText]:
    """Render texts with one instruction each, or one for all of them."""
    if isinstance(instructions, str):
        instructions = [instructions] * len(texts)
    return [template.render(text, instruction) for text, instruction in zip(texts, instructions, strict=True)]
