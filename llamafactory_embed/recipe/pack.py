"""`llamafactory-embed recipe pack`: a recipe as one file to share, with what it was made of.

The file is a recipe that the host trains. Configurations of engines that it names are put into it. A block of comments
at its end, whose lines begin with `#|`, holds fingerprints of the data, versions and the revision of the repository;
`recipe check` compares them with what is there (`check_packed`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..foreign import parse_yaml, read_foreign_json, read_json_object
from ..hparams.secrets import is_secret_name, secrets_of, without_secrets
from .effective import read_recipe_options
from .reading import replace_options
from .references import FILE_SOURCES, TEXT_SOURCES, split_commas
from .report import Report
from .writing import yaml_value


MARK = "#|"
PACKAGES = ("llamafactory-embed", "llamafactory", "transformers", "torch", "peft")
# Options whose file's content may stand in a recipe instead of its path.
CONTENT_OPTIONS = ("deepspeed", "fsdp_config", "accelerator_config")
# Options that name a place on the machine; a hub name looks like a relative path and is none of our business.
PATH_OPTIONS = (
    *(
        "model_name_or_path",
        "adapter_name_or_path",
        "checkpoint_dir",
        "ref_model",
        "ref_model_adapters",
        "dataset_dir",
    ),
    *(
        "reward_model",
        "reward_model_adapters",
        "logging_dir",
        "ray_storage_path",
        "swanlab_logdir",
        "adapter_folder",
        "profiler_output_dir",
        "kt_weight_path",
        "kt_expert_checkpoint_path",
        "hyper_parallel_args",
    ),
    *("media_dir", "tokenized_path", "output_dir", "resume_from_checkpoint", "dataset_weights", "cache_dir"),
    *("classifier_path", "tdro_start_weights", "export_dir", "offload_folder", "new_special_tokens_config"),
    *CONTENT_OPTIONS,
)


def pack_recipe(path: Path) -> str:
    """The text of the packed file."""
    options = read_recipe_options(path)
    changes: dict[str, str | None] = {}
    for name, value in options.items():
        if is_secret_name(name):
            changes[name] = None
        elif name in CONTENT_OPTIONS and isinstance(value, str) and not value.startswith("{"):
            changes[name] = yaml_value(_read_content(name, value))
        elif name in PATH_OPTIONS and isinstance(value, str) and Path(value).expanduser().is_absolute():
            changes[name] = yaml_value(_below_here(name, value))
    text = replace_options(path.read_text(encoding="utf-8"), changes)
    text = text.replace(str(Path.home()), "~")
    record = {
        "data": fingerprint_data(options),
        "versions": _versions(),
        "revision": _revision(path.parent),
    }
    block = yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=10**6)
    lines = [f"{MARK} {line}" for line in ("packed:", *(f"  {each}" for each in block.splitlines()))]
    secrets = secrets_of(options)
    return "\n".join(without_secrets(line, secrets) for line in [*text.rstrip("\n").splitlines(), "", *lines]) + "\n"


def _read_content(name: str, value: str) -> Any:
    """What the JSON file holds that an option names."""
    try:
        return read_foreign_json(value, f"`{name}` names it.")
    except OSError as error:
        raise ValueError(
            f"`{name}: {value}` cannot be read ({error.strerror}): name a JSON file that is there."
        ) from error


def _below_here(name: str, value: str) -> str:
    """A path below the working directory; others exist on one machine only."""
    path = Path(value).expanduser()
    if not path.is_relative_to(Path.cwd()):
        raise ValueError(
            f"`{name}: {value}` is a place on this machine: a recipe to share names paths below the working directory."
        )
    return path.relative_to(Path.cwd()).as_posix()


def fingerprint_data(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each data set: a digest of its entry in `dataset_info.json`, and digest and rows of its files."""
    folder = Path(str(options.get("dataset_dir", "data")))
    info = folder / "dataset_info.json"
    names = [name for key in ("dataset", "eval_dataset") for name in split_commas(options.get(key))]
    if not names or not info.is_file():
        return {}
    entries = read_json_object(info, "`dataset_dir` names its folder.")
    found = {}
    for name in names:
        plain = name.partition("[")[0]
        if plain in entries and plain not in found:
            found[plain] = _fingerprint_entry(entries[plain], folder)
    return found


def _fingerprint_entry(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    text = json.dumps(without_secrets(entry), sort_keys=True, ensure_ascii=False)
    record: dict[str, Any] = {"entry": hashlib.sha256(text.encode()).hexdigest()[:16]}
    for key in (*FILE_SOURCES, *TEXT_SOURCES):
        value = entry.get(key)
        name = value.get("file_name") if isinstance(value, Mapping) else value
        if isinstance(name, str) and (folder / name).exists():
            record[key] = _fingerprint_files(folder / name)
    return record


def _fingerprint_files(path: Path) -> dict[str, Any]:
    """A digest of a file, or of all files of a folder with their names; rows where lines are rows."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    state, rows = hashlib.sha256(), 0
    for file in files:
        state.update(file.relative_to(path).as_posix().encode() if path.is_dir() else b"")
        with file.open("rb") as stream:
            for line in stream:
                state.update(line)
                rows += bool(line.strip())
    record: dict[str, Any] = {"sha256": state.hexdigest()}
    return record | ({"rows": rows} if all(file.suffix == ".jsonl" for file in files) else {})


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _revision(folder: Path) -> str | None:
    """The commit that the recipe's repository is at, and whether it has changes; None outside of one."""
    command = ["git", "-C", str(folder.resolve()), "describe", "--always", "--abbrev=40", "--dirty", "--match", ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def read_record(text: str) -> dict[str, Any] | None:
    """What a packed file says about itself; None for other recipes."""
    lines = [line.removeprefix(MARK).removeprefix(" ") for line in text.splitlines() if line.startswith(MARK)]
    if not lines:
        return None
    try:
        record = parse_yaml("\n".join(lines))
        return dict(record["packed"])
    except (KeyError, TypeError, ValueError):
        return {}


def check_packed(report: Report, options: Mapping[str, Any]) -> None:
    """Compare a packed recipe with what is there. Its paths must stay below the working directory: it may come from
    anybody. Other data than it was packed with are a problem, other versions a remark."""
    record = read_record(report.path.read_text(encoding="utf-8"))
    if record is None:
        return
    if not isinstance(record.get("data"), dict) or not isinstance(record.get("versions"), dict):
        report.problem(None, f"the block of lines that begin with `{MARK}` is damaged: pack the recipe again.")
        return
    for name in PATH_OPTIONS:
        for value in split_commas(options.get(name)) if isinstance(options.get(name), str) else ():
            if (reason := _leads_out(value)) is not None:
                report.problem(name, f"`{name}: {value}` {reason}, which a packed recipe must not: use a path below "
                               "the working directory.")  # fmt: skip
    found = fingerprint_data(options) if isinstance(options.get("dataset_dir", "data"), str) else {}
    for name, packed in record["data"].items():
        if not isinstance(packed, dict):
            report.problem(None, f"the block of lines that begin with `{MARK}` is damaged: pack the recipe again.")
            return
        option = "dataset" if name in str(options.get("dataset")) else "eval_dataset"
        if name in found and found[name] != packed:
            part = next(key for key in {**packed, **found[name]} if packed.get(key) != found[name].get(key))
            what = "its entry in dataset_info.json" if part == "entry" else f"its `{part}`"
            report.problem(option, f"{name} is not as it was packed: {what} differs.")
    for package, version in record["versions"].items():
        here = _versions().get(package)
        if here is not None and here != version:
            report.remark(None, f"packed with {package} {version}, {here} is installed.")


def _leads_out(value: str) -> str | None:
    """Why a path may lead out of the working directory."""
    if value.startswith(("{", "~")) or re.match(r"[A-Za-z]:", value) or Path(value).is_absolute():
        return None if value.startswith("{") else "is an absolute path"
    parts = Path(value).parts
    if ".." in parts:
        return "leads out by `..`"
    steps = (Path(*parts[:count]) for count in range(1, len(parts) + 1))
    return "leads over a link" if any(step.is_symlink() for step in steps) else None
