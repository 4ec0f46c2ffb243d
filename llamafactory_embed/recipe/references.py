"""What the options point to: template, data sets and configuration files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..foreign import parse_foreign_json, read_foreign_json
from ..host.vocabulary import list_formats, list_templates
from ..hparams.contrastive import ContrastiveOptions
from ..hparams.objectives import check_objective, make_objective
from ..hparams.option import make_options
from ..hparams.suggestion import suggest
from .report import Report


# Options whose text is the path of a file that the run opens (or JSON).
FILE_OPTIONS = ("deepspeed", "fsdp_config", "accelerator_config", "hyper_parallel_args", "new_special_tokens_config")
# What an entry of dataset_info.json may take its rows from, in the order in which the host looks.
HUB_SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url")
FILE_SOURCES = ("script_url", "file_name")
TEXT_SOURCES = ("corpus", "queries")
"""Keys of an entry that name the texts of ids: a path, or an object with `file_name` or `hf_hub_url`."""


def check_template(report: Report, options: dict[str, Any]) -> None:
    """The template must be one of the host's."""
    template, known = options.get("template"), list_templates()
    if template is not None and template not in known:
        report.problem("template", f"unknown `template: {template}`{suggest(template, known)}")


def check_datasets(report: Report, options: dict[str, Any]) -> None:
    """Every data set must have an entry in `dataset_info.json`, and a local one its file."""
    folder = options.get("dataset_dir", "data")
    tokenized = options.get("tokenized_path")
    if folder == "ONLINE" or folder.startswith("REMOTE:") or (tokenized and Path(tokenized).exists()):
        return

    formats = list_formats(options.get("stage"))
    names = [(option, name) for option in ("dataset", "eval_dataset") for name in split_commas(options.get(option))]
    if "retrieval" in formats:
        names = without_slices(report, names)
    if not names:
        return
    info_path = Path(folder) / "dataset_info.json"
    blamed = "dataset_dir" if "dataset_dir" in options else names[0][0]
    try:
        entries = read_foreign_json(info_path, "`dataset_dir` names its folder.")
    except OSError:
        report.problem(blamed, f"{info_path} does not exist: `dataset_dir` must name the folder that holds it.")
        return
    except ValueError as error:
        report.problem(blamed, str(error))
        return
    if not (isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())):
        report.problem(blamed, f"{info_path} must map the name of each data set to its entry.")
        return

    for option, name in names:
        if name not in entries:
            report.problem(option, f"`{option}` names {name}, which {info_path} does not have{suggest(name, entries)}")
            continue
        check_entry(report, option, name, entries[name], info_path)
        check_texts(report, option, name, entries[name], info_path)
        formatting = entries[name].get("formatting")
        if formatting is not None and formatting not in list(formats):
            reads = f"reads {', '.join(formats)}{suggest(formatting, formats)}"
            report.problem(
                option, f"`formatting: {formatting}` of {name} in {info_path} is not for this stage, which {reads}"
            )
    if options.get("stage") == "contrastive":
        trained = {name: entries[name] for option, name in names if option == "dataset" and name in entries}
        check_objectives(report, options, trained)


def check_objectives(report: Report, options: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
    """The recipe's `objectives` must name tasks, and those of data sets must suit the recipe. What is wrong with the
    settings of `objectives` themselves is the stage's own complaint."""
    of_recipe = options.get("objectives")
    settings: dict[str, Any] = of_recipe if isinstance(of_recipe, dict) else {}
    tasks = {name: entry.get("task") or name for name, entry in entries.items()}
    for task in settings:
        if tasks and task not in tasks.values():
            report.problem(
                "objectives",
                f"`objectives` names {task}, which is no task of `dataset`{suggest(task, tasks.values())}",
            )
    own = {field.name for field in dataclasses.fields(ContrastiveOptions)} & options.keys()
    try:
        declared = make_options(ContrastiveOptions, {name: options[name] for name in own})
    except ValueError:
        return  # the options are wrong by themselves, which is reported elsewhere
    for name, entry in entries.items():
        source = f"Data set `{name}`: `objective`"
        try:
            given = check_objective(entry.get("objective", {}), source)
            make_objective(declared, given, source)
        except ValueError as error:
            report.problem("dataset", str(error))


def without_slices(report: Report, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Options with the data sets they name, of which a recipe may take the first rows only (`name[:3000]`)."""
    from ..data.retrieval.entries import split_slice  # late: it imports torch

    whole = []
    for option, name in names:
        try:
            whole.append((option, split_slice(name)[0]))
        except ValueError as error:
            report.problem(option, str(error))
    return whole


def check_entry(report: Report, option: str, name: str, entry: dict[str, Any], info_path: Path) -> None:
    """Require that an entry of `dataset_info.json` says where its rows are, and that they are there."""
    if any(source in entry for source in (*HUB_SOURCES, "cloud_file_name")):
        return
    source = next((source for source in FILE_SOURCES if source in entry), None)
    if source is None:
        sources = ", ".join((*FILE_SOURCES, *HUB_SOURCES))
        report.problem(
            option, f"the entry {name} of {info_path} does not say where its rows are: it needs one of {sources}."
        )
        return
    if not isinstance(entry[source], str):
        report.problem(option, f"the `{source}` of {name} in {info_path} must be a path.")
        return
    file = info_path.parent / entry[source]
    if not file.exists():
        report.problem(option, f"{file}, the `{source}` of {name} in {info_path}, does not exist.")


def check_texts(report: Report, option: str, name: str, entry: dict[str, Any], info_path: Path) -> None:
    """Require that the files are there whose texts the rows name by id."""
    for key in TEXT_SOURCES:
        value = entry.get(key)
        file_name = value if isinstance(value, str) else None
        if isinstance(value, dict) and "hf_hub_url" not in value:
            file_name = value.get("file_name")
        if isinstance(file_name, str) and not (info_path.parent / file_name).exists():
            file = info_path.parent / file_name
            report.problem(option, f"{file}, the `{key}` of {name} in {info_path}, does not exist.")


def split_commas(value: Any) -> list[str]:
    """Names as the host separates them. YAML may hold numbers and more in their place, which are names of nothing."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return [str(name) for name in value] if isinstance(value, list) else [] if value is None else [str(value)]


def check_files(report: Report, options: dict[str, Any]) -> dict[str, Any]:
    """Report configuration files that are not there or not JSON, and return the options without them."""
    fine = dict(options)
    for name in FILE_OPTIONS:
        value = options.get(name)
        if not isinstance(value, str):
            continue
        try:
            text = value if value.startswith("{") else Path(value).read_text(encoding="utf-8")
            if name != "new_special_tokens_config":
                parse_foreign_json(text)
        except OSError:
            report.problem(name, f"`{name}`: there is no file {value}.")
            del fine[name]
        except ValueError as error:
            report.problem(name, f"`{name}`: {value} is not valid JSON: {error}.")
            del fine[name]
    return fine
