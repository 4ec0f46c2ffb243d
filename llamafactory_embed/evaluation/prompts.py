"""Which instruction stands in front of the texts of a task."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..data.prompts import TEMPLATES, parse_template
from ..hparams.suggestion import suggest
from ..loading.sentence_transformers_folder import read_default_prompt_name, read_saved_prompts
from ..model.embedding_config import EmbeddingConfig


if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata


ROLES = ("query", "document")
CLOSING, JOINING = ".,:;!?", ".,:;"  # an instruction's last character, and what no template should put after it
TRAINED = "@"  # `@name` stands for the instruction that was trained under that name


@dataclass(frozen=True)
class Instructions:
    """The instructions of one model, in the order in which mteb itself looks for prompts."""

    given: Mapping[str, str]
    """From the user: by `<task>-<role>`, task, `<type>-<role>`, type or role."""
    trained: Mapping[str, str]
    """From training, by the task's name."""
    use_defaults: bool
    """Whether a task of mteb that has no other instruction gets mteb's."""
    local_tasks: frozenset[str]
    """Tasks from local data: their instruction is in their metadata, or they have none."""

    def find(self, task: TaskMetadata, role: str | None) -> str:
        """The instruction for texts of a task; `role` is None where all texts of the task are of one kind."""
        for key in keys_of(task.name, task.type, role):
            if key in self.given:
                return self.given[key]
        if task.name in self.trained:
            return self.trained[task.name] if role != "document" else ""
        if task.name in self.local_tasks:
            return prompt_of_metadata(task.prompt, role)
        if not self.use_defaults:
            return ""
        return prompt_of_metadata(task.prompt, role) or default_of_kind(task.name, role)


@dataclass(frozen=True)
class OwnPrompts:
    """The prompts that a folder of sentence-transformers brings along, chosen as mteb does it for such a model, whose
    results are compared with published ones."""

    prompts: Mapping[str, str]
    default: str | None
    """Name of the prompt of texts that are neither queries nor documents."""

    @classmethod
    def of_folder(cls, folder: str | Path) -> OwnPrompts:
        """As they are saved; sentence-transformers gives every model a prompt for queries and one for documents."""
        return cls({"query": "", "document": ""} | read_saved_prompts(folder), read_default_prompt_name(folder))

    def find(self, task: TaskMetadata, role: str | None) -> str:
        """What stands before the texts of a task, white space included."""
        from mteb.models.abs_encoder import get_prompt_name
        from mteb.types import PromptType

        name = get_prompt_name(dict(self.prompts), task, None if role is None else PromptType(role))
        return self.prompts.get(name or self.default or "", "")


def keys_of(task: str, kind: str, role: str | None) -> list[str]:
    """The keys that apply to some texts, the most specific first."""
    if role is None:
        return [task, kind]
    both = [f"{task}-{role}", task, f"{kind}-{role}", kind, role]
    # A key without a role is for queries: documents have an instruction only if one is given for them.
    return both if role == "query" else [key for key in both if key.endswith(role)]


def prompt_of_metadata(prompt: str | Mapping[str, object] | None, role: str | None) -> str:
    """A task's own instruction; one without a role is for queries and for texts of one kind."""
    if isinstance(prompt, Mapping):
        return str(prompt.get(role or "query", ""))
    return (prompt or "") if role != "document" else ""


def default_of_kind(task: str, role: str | None) -> str:
    """mteb's instruction for the kind of task."""
    from mteb.abstasks.abstask import get_abstask_prompt

    return get_abstask_prompt(task) if role != "document" else ""


def resolve_prompts(prompts: Mapping[str, str], config: EmbeddingConfig, checkpoint: str) -> dict[str, str]:
    """The user's instructions, with each `@name` replaced by the trained instruction."""
    resolved = {}
    for key, text in prompts.items():
        name = text.removeprefix(TRAINED)
        if text.startswith(TRAINED) and name not in config.instructions:
            raise ValueError(
                f"`prompts: {key}` names `{name}`, but {checkpoint} was trained with the instructions of "
                f"{', '.join(config.instructions) or 'no task'}{suggest(name, config.instructions)}"
            )
        resolved[key] = config.instructions[name] if text.startswith(TRAINED) else text
    return resolved


def check_prompt_keys(prompts: Iterable[str], tasks: Iterable[str]) -> None:
    """Refuse keys that apply to no text."""
    from mteb.abstasks.task_metadata import TaskType

    names = [*tasks, *get_args(TaskType)]
    allowed = [*ROLES, *names, *(f"{name}-{role}" for name in names for role in ROLES)]
    for key in prompts:
        if key not in allowed:
            raise ValueError(
                f"`prompts` has the key `{key}`, which is none of the tasks that are run, no type of task and neither "
                f"query nor document{suggest(key, allowed)}"
            )


def find_untrained_prompts(
    name: str,
    trained: EmbeddingConfig,
    query_template: str,
    instructions: Instructions,
    tasks: Iterable[tuple[TaskMetadata, str | None]],
) -> str | None:
    """A sentence about the tasks, each with the role of its texts, whose prompt is none of those in training. A
    checkpoint that records no instruction is only told of doubled punctuation."""
    trained_prompts = sorted({render(trained.query_template, each) for each in trained.instructions.values()})
    untrained: dict[str, tuple[str, str]] = {}
    for task, role in tasks:
        instruction = instructions.find(task, role)
        prompt = render(query_template, instruction)
        doubled = doubled_punctuation(query_template, instruction)
        if prompt not in trained_prompts and (trained_prompts or doubled):
            untrained[task.name] = prompt, doubled
    if not untrained:
        return None
    task_name = next((task for task, (_, doubled) in untrained.items() if doubled), next(iter(untrained)))
    prompt, doubled = untrained[task_name]
    sentence = f"{name} reads the texts of {task_name} as {prompt!r}"
    if trained_prompts:
        (closest,) = difflib.get_close_matches(prompt, trained_prompts, n=1, cutoff=0)
        sentence += f", but was trained with {closest!r}"
    if len(untrained) > 1:
        sentence += f" ({len(untrained)} tasks have prompts that are new to it)"
    if doubled:
        sentence += f"; {doubled!r} is where the instruction ends and the template goes on"
    return f"{sentence}. `prompts` and `query_template` decide what it reads."


def render(template: str, instruction: str) -> str:
    """The prompt of an instruction around the word "text"."""
    return parse_template(template).render("text", instruction).string


def doubled_punctuation(template: str, instruction: str) -> str:
    """The two characters where an instruction that ends with punctuation meets a template that goes on with some;
    nothing if they do not."""
    _, _, after = TEMPLATES.get(template, template).partition("{instruction}")
    end = instruction.strip()[-1:]
    return end + after[0] if end and after and end in CLOSING and after[0] in JOINING else ""
