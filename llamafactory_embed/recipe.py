"""`llamafactory-embed recipe check`: read a recipe as the run would, and list everything that is wrong with it.

No model is loaded, no data read, no folder made and no process group started: the host's own argument classes and
checks run on a stand-in for its training arguments that never looks for a device. What depends on the machine, such as
`bf16` without a GPU, is a remark that begins with "here:" and not a problem.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import enum
import functools
import importlib.metadata
import io
import json
import logging
import os
import re
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from .hparams.option import choices, find_problem, is_optional


# Options of the host that name one thing or several: text with commas, or a list.
COMMA_LISTS: dict[str, Any] = {
    "interleave_probs": list[float | str],
    **dict.fromkeys(("dataset", "eval_dataset", "lora_target", "oft_target", "additional_target"), list[str]),
    **dict.fromkeys(("freeze_trainable_modules", "freeze_extra_modules"), list[str]),
    **dict.fromkeys(("galore_target", "apollo_target"), list[str]),
}
# Options whose text is the path of a file that the run opens (or JSON).
FILE_OPTIONS = ("deepspeed", "fsdp_config", "accelerator_config", "hyper_parallel_args", "new_special_tokens_config")
# What people write into recipes although LLaMA-Factory reads it from the environment.
ENVIRONMENT_VARIABLES = {"use_ray": "USE_RAY=1", "force_torchrun": "FORCE_TORCHRUN=1"}
# What an entry of dataset_info.json may take its rows from, in the order in which the host looks.
HUB_SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url")
FILE_SOURCES = ("script_url", "file_name")

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}


@dataclass(frozen=True)
class Problem:
    """Something wrong in a recipe, or a remark about it."""

    path: Path
    line: int | None
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.line is None else f':{self.line}'}: {self.sentence}"


@dataclass
class Report:
    """What was found in one recipe."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    lines: dict[Any, int] = field(default_factory=dict)
    """Option → its line."""
    unquoted: dict[Any, str] = field(default_factory=dict)
    """Option → its value as it is written, where it is one plain word."""

    def problem(self, option: Any, sentence: str, line: int | None = None) -> None:
        """Record what has to be changed."""
        found = Problem(self.path, line or self.lines.get(option), sentence)
        if found not in self.problems:
            self.problems.append(found)

    def remark(self, option: Any, sentence: str) -> None:
        """Record what would not work on this machine, or not now."""
        self.remarks.append(Problem(self.path, self.lines.get(option), f"here: {sentence}"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`recipe check FILE…`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", help="list all problems of recipes, with their lines")
    check.add_argument("files", nargs="+", metavar="FILE", type=Path, help="a recipe (YAML)")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each problem, or one that says that the recipe is fine; 1 when any has a problem."""
    faulty = 0
    for path in arguments.files:
        report = inspect_recipe(path)
        for found in sorted(report.problems + report.remarks, key=lambda each: each.line or 0):
            print(found)
        if report.problems:
            faulty += 1
        else:
            print(f"{path}: fine")
    return 1 if faulty else 0


def check_recipe(path: str | os.PathLike[str]) -> list[Problem]:
    """All problems of a recipe in the order of its lines; none when the run would accept it."""
    return sorted(inspect_recipe(path).problems, key=lambda problem: problem.line or 0)


def inspect_recipe(path: str | os.PathLike[str]) -> Report:
    """Problems of a recipe, and remarks about this machine."""
    report = Report(Path(path))
    options = read_options(report)
    if options is None:
        return report

    with quiet():
        from llamafactory.hparams import parser as host

        is_training = "export_dir" not in options and not options.keys().isdisjoint(
            option.name for option in dataclasses.fields(host.TrainingArguments)
        )
        argument_classes = [host.ModelArguments, host.DataArguments, host.FinetuningArguments]
        argument_classes += [host.GeneratingArguments] + ([host.TrainingArguments] if is_training else [])
        stage = options.get("stage")
        options = check_values(report, options, argument_classes)
        check_template(report, options)
        check_datasets(report, options)
        options = check_files(report, options)
        remark_on_machine(report, options)
        run_host_checks(report, options, argument_classes, is_stage_known=options.get("stage") == stage)
    return report


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The host's checks log and warn about the run, which is not taking place."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def nearest(name: Any, known: Iterable[Any]) -> Any:
    """The known name or value that was probably meant, or None."""
    texts = {str(each): each for each in known}
    return next((texts[text] for text in difflib.get_close_matches(str(name), texts, n=1)), None)


def suggest(name: Any, known: Iterable[Any]) -> str:
    """`; did you mean …?`, or a full stop where nothing is near."""
    meant = nearest(name, known)
    return "." if meant is None else f"; did you mean `{meant}`?"


# --------------------------------------------------------------------------------------------------------------------
# From text to options
# --------------------------------------------------------------------------------------------------------------------


def read_options(report: Report) -> dict[Any, Any] | None:
    """The options as LLaMA-Factory's reader (OmegaConf) sees them; it takes `1e-4` for a number, PyYAML does not."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if report.path.suffix not in (".yaml", ".yml"):
        report.problem(None, "LLaMA-Factory reads recipes from files that end in .yaml or .yml.")
        return None
    try:
        text = report.path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode) or not root.value:
            report.problem(None, "a recipe must hold lines of the form `option: value`.")
            return None
        text = note_lines(report, text, root)
        return typing.cast(dict[Any, Any], OmegaConf.to_container(OmegaConf.load(io.StringIO(text))))
    except FileNotFoundError:
        report.problem(None, "there is no such file.")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        report.problem(None, f"not valid YAML: {' '.join(filter(None, (error.context, error.problem)))}.", line)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, ValueError) as error:
        report.problem(None, f"cannot be read: {' '.join(str(error).split())}")
    return None


def note_lines(report: Report, text: str, root: yaml.MappingNode) -> str:
    """Remember where each option stands. Of options that are set twice, which the run refuses, the last one counts:
    the others are blanked out of the text that is returned."""
    spans: dict[str, tuple[int, int]] = {}
    for key, value in root.value:
        name, line = key.value, key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            continue
        if name in spans:
            start, end = spans[name]
            text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
            report.problem(name, f"`{name}` is set twice, in line {report.lines[name]} and here.", line)
        report.lines[name] = line
        spans[name] = (key.start_mark.index, value.end_mark.index)
        if isinstance(value, yaml.ScalarNode) and value.style is None:
            report.unquoted[name] = value.value
    return text


# --------------------------------------------------------------------------------------------------------------------
# Names and values
# --------------------------------------------------------------------------------------------------------------------


def check_values(report: Report, options: dict[Any, Any], argument_classes: list[type]) -> dict[str, Any]:
    """Report unknown options and wrong values. Returned are the options as they were probably meant, without those
    that cannot be guessed, so that the checks that follow complain about nothing twice."""
    from .host.registry import load_registry

    registry = load_registry()
    of_stages = {each.name for stage in registry.stages.values() for each in dataclasses.fields(stage.options)}
    known = {
        declared.name: (declared, annotations[declared.name])
        for argument_class in argument_classes
        for annotations in (typing.get_type_hints(argument_class),)
        for declared in dataclasses.fields(argument_class)
        if declared.init
    }
    meant: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            name = report_unknown(report, name, known)
            if name is None or name in options:
                continue

        declared, annotation = known[name]
        plain = report.unquoted.get(name)
        sentence = find_problem(declared, annotation, value) if name in of_stages else None
        sentence = sentence or find_host_problem(declared, annotation, value, plain)
        if name == "stage" and isinstance(value, str) and value in registry.problems:
            sentence = registry.problems[value]
        elif name == "stage" and sentence and value in list(registry.stages):
            sentence = f"`stage: {value}` needs the plugin, which is off here: see `llamafactory-embed doctor`."
        if sentence is None:
            meant[name] = value
            continue
        report.problem(name, sentence)
        guess = guess_value(annotation, value, plain)
        if guess is not None and name not in of_stages:
            meant[name] = guess

    if meant.get("stage") != options.get("stage"):  # nobody can say which stage's options should be there
        meant = {name: value for name, value in meant.items() if name not in of_stages}
    if meant.get("model_name_or_path") is None:
        if "model_name_or_path" not in report.lines:
            report.problem(None, "`model_name_or_path` is missing.")
        meant["model_name_or_path"] = "model"
    return meant


def report_unknown(report: Report, name: Any, known: Collection[str]) -> str | None:
    """Report an option that nobody knows, and return the one that was probably meant."""
    if is_switched_on("ALLOW_EXTRA_ARGS"):
        report.remark(name, f"`{name}` is no option, and ignored because of ALLOW_EXTRA_ARGS.")
        return None
    if name in ENVIRONMENT_VARIABLES:
        variable = ENVIRONMENT_VARIABLES[name]
        report.problem(name, f"`{name}` is no option: set the environment variable {variable} instead.")
        return None
    report.problem(name, f"unknown option `{name}`{suggest(name, known)}")
    meant = nearest(name, known)
    if meant is not None and meant not in report.lines:
        report.lines[meant] = report.lines.get(name, 0)
    return meant


def is_switched_on(variable: str) -> bool:
    """Whether an environment variable says yes to LLaMA-Factory."""
    from llamafactory.extras.misc import is_env_enabled

    return is_env_enabled(variable)


def find_host_problem(declared: dataclasses.Field[Any], annotation: Any, value: Any, plain: str | None) -> str | None:
    """What is wrong with the value of one option of LLaMA-Factory; `plain` is how it is written if without quotes."""
    name = declared.name
    if value is None:
        is_fine = declared.default is None or is_optional(annotation)
        return None if is_fine else f"`{name}` needs a value, or must be left out."

    allowed = (*choices(annotation), *enumerated(annotation))
    if allowed:
        if value in allowed:
            return None
        hint = suggest(value, map(str, allowed))
        if isinstance(value, bool) and plain is not None and plain.lower() not in ("true", "false"):
            hint = f": YAML reads {plain} as {str(value).lower()}, put it in quotes."
        return f"`{name}` must be one of {', '.join(map(str, allowed))}, not {value!r}{hint}"

    if fits(annotation, value) or (name in COMMA_LISTS and fits(COMMA_LISTS[name], value)):
        return None
    hint = "."
    if isinstance(value, str) and fits(annotation, 1) and is_number(value):
        hint = ": take the quotes off."
    elif isinstance(value, float) and value.is_integer() and fits(annotation, 1):
        hint = f": write {int(value)}."
    elif isinstance(value, (bool, int, float)) and fits(annotation, ""):
        hint = ": put it in quotes."
    return f"`{name}` must be {describe_type(annotation)}, not {value!r}{hint}"


def guess_value(annotation: Any, value: Any, plain: str | None) -> Any:
    """The value that was probably meant in the place of a wrong one, or None."""
    allowed = (*choices(annotation), *enumerated(annotation))
    if allowed:
        return plain if plain in allowed else nearest(value, allowed)
    if isinstance(value, str):
        candidates = [yaml.safe_load(value)] if value.lower() in ("true", "false") else []
        candidates += [float(value)] if is_number(value) else []
    else:
        candidates = [str(value)]
    candidates += [int(each) for each in (value, *candidates) if isinstance(each, float) and each.is_integer()]
    return next((each for each in candidates if fits(annotation, each)), None)


def parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type there is."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def enumerated(annotation: Any) -> tuple[Any, ...]:
    """The values of the enumerations in an annotation; the host writes `SchedulerType | str` for one of them."""
    kinds = [part for part in parts(annotation) if isinstance(part, type) and issubclass(part, enum.Enum)]
    return tuple(member.value for kind in kinds for member in kind)


def fits(annotation: Any, value: Any) -> bool:
    """Whether the host can use the value for an option of that type."""
    for part in parts(annotation):
        kind = typing.get_origin(part) or part
        if kind is bool:
            found = isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
        elif kind in (int, float):
            found = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        elif kind is list:
            (inner,) = typing.get_args(part)
            found = isinstance(value, list) and all(fits(inner, each) for each in value)
        elif kind in (str, dict):
            found = isinstance(value, kind)
        else:  # a class of Python that a recipe cannot hold; or None, which was dealt with
            found = isinstance(kind, type) and issubclass(kind, enum.Enum) and value in enumerated(kind)
        if found:
            return True
    return False


def is_number(text: str) -> bool:
    """Whether a text would be a number without its quotes."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def describe_type(annotation: Any) -> str:
    """The types of an option in words."""
    kinds = [typing.get_origin(part) or part for part in parts(annotation)]
    return " or ".join(TYPE_NAMES.get(kind, "a mapping") for kind in kinds if kind is not type(None))


# --------------------------------------------------------------------------------------------------------------------
# What the options point to
# --------------------------------------------------------------------------------------------------------------------


def check_template(report: Report, options: dict[str, Any]) -> None:
    """The template must be one of the host's."""
    from llamafactory.data.template import TEMPLATES

    template = options.get("template")
    if template is not None and template not in TEMPLATES:
        report.problem("template", f"unknown `template: {template}`{suggest(template, TEMPLATES)}")


def check_datasets(report: Report, options: dict[str, Any]) -> None:
    """Every data set must have an entry in `dataset_info.json`, and a local one its file."""
    folder = options.get("dataset_dir", "data")
    tokenized = options.get("tokenized_path")
    if folder == "ONLINE" or folder.startswith("REMOTE:") or (tokenized and Path(tokenized).exists()):
        return

    names = [(option, name) for option in ("dataset", "eval_dataset") for name in split_commas(options.get(option))]
    if not names:
        return
    info_path = Path(folder) / "dataset_info.json"
    blamed = "dataset_dir" if "dataset_dir" in options else names[0][0]
    try:
        entries = json.loads(info_path.read_text(encoding="utf-8"))
    except OSError:
        report.problem(blamed, f"{info_path} does not exist: `dataset_dir` must name the folder that holds it.")
        return
    except ValueError as error:
        report.problem(blamed, f"{info_path} is not valid JSON: {error}.")
        return
    if not (isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())):
        report.problem(blamed, f"{info_path} must map the name of each data set to its entry.")
        return

    formats = read_formats(options.get("stage"))
    for option, name in names:
        if name not in entries:
            report.problem(option, f"`{option}` names {name}, which {info_path} does not have{suggest(name, entries)}")
            continue
        check_entry(report, option, name, entries[name], info_path)
        formatting = entries[name].get("formatting")
        if formatting is not None and formatting not in formats:
            reads = f"reads {', '.join(formats)}{suggest(formatting, formats)}"
            report.problem(
                option, f"`formatting: {formatting}` of {name} in {info_path} is not for this stage, which {reads}"
            )


def read_formats(stage_name: Any) -> Collection[str]:
    """The values of `formatting` that a stage reads."""
    from llamafactory.data.parser import DatasetAttr

    from .host.registry import load_registry

    stage = load_registry().stages.get(stage_name) if isinstance(stage_name, str) else None
    hosts_own = choices(typing.get_type_hints(DatasetAttr)["formatting"])
    return stage.formats if stage is not None and stage.formats else hosts_own


def check_entry(report: Report, option: str, name: str, entry: dict[str, Any], info_path: Path) -> None:
    """One entry of `dataset_info.json`: it must say where the rows are, and they must be there."""
    if any(source in entry for source in (*HUB_SOURCES, "cloud_file_name")):
        return
    source = next((source for source in FILE_SOURCES if source in entry), None)
    if source is None:
        wanted = ", ".join((*FILE_SOURCES, *HUB_SOURCES))
        report.problem(
            option, f"the entry {name} of {info_path} says not where its rows are: it needs one of {wanted}."
        )
        return
    file = info_path.parent / entry[source]
    if not file.exists():
        report.problem(option, f"{file}, the `{source}` of {name} in {info_path}, does not exist.")


def split_commas(value: Any) -> list[str]:
    """Names as the host separates them."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value or [])


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
                json.loads(text)
        except OSError:
            report.problem(name, f"`{name}`: there is no file {value}.")
            del fine[name]
        except ValueError as error:
            report.problem(name, f"`{name}`: {value} is not valid JSON: {error}.")
            del fine[name]
    return fine


def remark_on_machine(report: Report, options: dict[str, Any]) -> None:
    """What the run would stumble over on this machine, or today, though the recipe is right."""
    import torch
    from llamafactory.extras.constants import CHECKPOINT_NAMES
    from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

    on_cpu = options.get("use_cpu", False)
    for name, is_there in (
        ("bf16", on_cpu or is_torch_bf16_gpu_available()),
        ("bf16_full_eval", on_cpu or is_torch_bf16_gpu_available()),
        ("pure_bf16", is_torch_bf16_gpu_available()),
        ("fp16", torch.accelerator.is_available()),
        ("tf32", is_torch_tf32_available()),
    ):
        if options.get(name) and not is_there:
            report.remark(name, f"no GPU for `{name}: true`, the run would stop.")

    for name, package in (("quantization_bit", "bitsandbytes"), ("deepspeed", "deepspeed")):
        if options.get(name) and not is_installed(package):
            report.remark(name, f"`{name}` needs {package}, which is not installed.")
    if options.get("deepspeed") and not is_switched_on("FORCE_TORCHRUN") and torch.accelerator.device_count() < 2:
        report.remark("deepspeed", "start the run with FORCE_TORCHRUN=1.")

    model = options["model_name_or_path"]
    if (model.startswith((".", "/", "~")) or model.count("/") > 1) and not Path(model).exists():
        report.remark("model_name_or_path", f"there is no folder {model} yet.")

    output = Path(options.get("output_dir") or "")
    if options.get("do_train") and options.get("output_dir") and not options.get("overwrite_output_dir"):
        if any(output.glob("checkpoint-*")):
            report.remark("output_dir", f"the run would go on from the last checkpoint in {output}.")
        elif any((output / name).is_file() for name in CHECKPOINT_NAMES):
            report.remark("output_dir", f"{output} holds a model: the run wants `overwrite_output_dir: true`.")


def is_installed(package: str) -> bool:
    """Whether a distribution of that name is installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------------------
# The host's own checks
# --------------------------------------------------------------------------------------------------------------------


def run_host_checks(
    report: Report, options: dict[str, Any], argument_classes: list[type], is_stage_known: bool
) -> None:
    """Build the arguments, then let the host compare them in the light of the stage. It stops at its first complaint:
    the option that this names is taken out and the checks go on, until all is said."""
    from llamafactory.hparams import parser as host

    options, are_built = dict(options), True
    for argument_class in argument_classes:
        attempt = functools.partial(build_arguments, argument_class, options)
        are_built = collect_complaints(report, options, attempt) and are_built
    if are_built and is_stage_known:
        is_training = host.TrainingArguments in argument_classes
        collect_complaints(report, options, functools.partial(compare_arguments, report, options, is_training))


def collect_complaints(report: Report, options: dict[str, Any], attempt: Callable[[], Any]) -> bool:
    """Repeat the attempt, each time without the option that the last complaint named; whether it went through."""
    while True:
        try:
            with mock.patch.dict(os.environ):
                for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
                    del os.environ[name]
                os.environ["LLAMAFACTORY_VERBOSITY"] = "ERROR"
                attempt()
            return True
        except Exception as error:  # whatever the host makes of a value is what the run would end with
            message = " ".join(str(error).split())
            if not isinstance(error, (ValueError, AssertionError)):
                message = f"{type(error).__name__}: {message}"
            culprit = find_culprit(message, options)
            report.problem(culprit, message)
            if culprit in (None, "stage", "model_name_or_path"):
                return False
            del options[culprit]


def find_culprit(message: str, options: Collection[str]) -> str | None:
    """The first option of the recipe that a complaint names: in backticks, after `--` or by an unmistakable name, else
    by a word that might be just that."""
    named = re.findall(r"`(?:--)?(\w+)|--(\w+)|\b([a-z0-9]+_\w+)", message)
    words = [name for groups in named for name in groups]
    words += [word for word in re.findall(r"\w+", message) if word != "stage"]  # "Cannot use PiSSA for current stage"
    return next((word for word in words if word in options), None)


def build_arguments(argument_class: type, options: dict[str, Any]) -> Any:
    """An instance of one of the host's argument classes; training arguments that leave the machine alone."""
    import torch
    from llamafactory.hparams.parser import TrainingArguments
    from transformers.training_args import ParallelMode

    class UnstartedTrainingArguments(TrainingArguments):
        """The host's checks without a device, DeepSpeed or a process group behind them."""

        _setup_devices = torch.device("cpu")
        _n_gpu = 1
        distributed_state = None
        should_log = False

        def __post_init__(self) -> None:
            hidden = {"use_cpu": True, "tf32": None, "deepspeed": None}
            own = {name: getattr(self, name) for name in hidden}
            self.__dict__.update(hidden)
            super().__post_init__()
            self.__dict__.update(own)

        @property
        def parallel_mode(self) -> Any:
            return ParallelMode.DISTRIBUTED if self.deepspeed or self.fsdp else ParallelMode.NOT_PARALLEL

    names = {declared.name for declared in dataclasses.fields(argument_class) if declared.init}
    kind = UnstartedTrainingArguments if argument_class is TrainingArguments else argument_class
    return kind(**{name: value for name, value in options.items() if name in names})


def compare_arguments(report: Report, options: dict[str, Any], is_training: bool) -> None:
    """The host's checks of arguments against each other. Its parser is handed instances that are built here, and the
    packages that it would demand become remarks."""
    import torch
    import transformers
    from llamafactory.hparams import parser as host
    from packaging.requirements import Requirement

    class Builder:
        """In the place of `HfArgumentParser`."""

        def __init__(self, argument_classes: list[type]) -> None:
            self.argument_classes = argument_classes

        def parse_dict(self, options: dict[str, Any], allow_extra_keys: bool) -> tuple[Any, ...]:
            return tuple(build_arguments(argument_class, options) for argument_class in self.argument_classes)

    demanded: list[str] = []
    with (
        mock.patch.multiple(
            host,
            HfArgumentParser=Builder,
            check_version=lambda requirement, mandatory=False: demanded.append(requirement),
            is_torch_bf16_gpu_available=lambda: True,
            is_deepspeed_zero3_enabled=lambda: deepspeed_stage(options.get("deepspeed")) == 3,
            get_current_device=lambda: torch.device("cpu"),
            get_last_checkpoint=lambda folder: None,
            CHECKPOINT_NAMES=(),
        ),
        mock.patch.object(transformers, "set_seed"),
    ):
        (host.get_train_args if is_training else host.get_infer_args)(options)

    for requirement in demanded:
        package = Requirement(requirement).name
        if package != "deepspeed" and not is_installed(package):
            report.remark(None, f"{package} is needed and not installed.")


def deepspeed_stage(config: Any) -> int | None:
    """The ZeRO stage of a DeepSpeed configuration: a mapping, JSON, or a file with JSON."""
    if isinstance(config, str):
        config = json.loads(config if config.startswith("{") else Path(config).read_text(encoding="utf-8"))
    return (config or {}).get("zero_optimization", {}).get("stage")
