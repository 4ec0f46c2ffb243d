"""An options dataclass as the arguments of a command."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from llamafactory_embed.cli import COMMANDS, build_parser
from llamafactory_embed.hparams.command_line import add_options, read_options
from llamafactory_embed.hparams.option import REQUIRED, option


@dataclass(frozen=True)
class TripOptions:
    """One option of every kind."""

    start: str = option(REQUIRED, "Where it begins.", positional=True)
    goal: str = option(REQUIRED, "Where it ends.")
    days: int = option(3, "Days, 100 % of them on foot.", minimum=1)
    speed: float = option(4.5, "Kilometres an hour.", flags=("--pace",))
    season: Literal["summer", "winter"] = option("summer", "When.")
    stops: list[str] = option(["inn", "hut"], "Where to sleep.")
    heights: list[int] | None = option(None, "Heights on the way.")
    map_file: Path | None = option(None, "Picture of the way.", metavar="FILE")
    by_night: bool = option(False, "Walk at night.")
    with_guide: bool = option(True, "Take a guide.")
    by_train: bool | None = option(None, "Whether to go back by train.")

    def __post_init__(self) -> None:
        if self.season == "winter" and self.by_night:
            raise ValueError("`by_night` is too cold in `season: winter`.")


def parse(*words: str, with_defaults: bool = True) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, TripOptions, with_defaults=with_defaults)
    return parser.parse_args(words)


def test_options_that_nobody_types_have_their_defaults() -> None:
    assert read_options(parse("home", "--goal", "peak"), TripOptions) == TripOptions("home", "peak")


def test_every_kind_of_option_is_read() -> None:
    words = "home --goal peak --days 5 --pace 3 --season winter --stops hut tent --heights 100 2000"
    words += " --map-file map.png --no-with-guide --no-by-train"
    assert read_options(parse(*words.split()), TripOptions) == TripOptions(
        start="home", goal="peak", days=5, speed=3.0, season="winter", stops=["hut", "tent"], heights=[100, 2000],
        map_file=Path("map.png"), with_guide=False, by_train=False,
    )  # fmt: skip
    assert read_options(parse("home", "--goal", "x", "--by-night", "--by-train"), TripOptions).by_train is True


def test_the_default_of_a_list_is_not_shared() -> None:
    parse("home", "--goal", "peak").stops.append("cave")
    assert parse("home", "--goal", "peak").stops == ["inn", "hut"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--days", "0"], "`days` must be at least 1, not 0"),
        (["--season", "winter", "--by-night"], "`by_night` is too cold in `season: winter`"),
    ],
)
def test_values_are_checked_as_in_a_recipe(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_options(parse("home", "--goal", "peak", *words), TripOptions)


def test_options_that_nobody_types_can_be_left_out() -> None:
    assert vars(parse("home", "--days", "2", "--no-with-guide", with_defaults=False)) == {
        "start": "home", "days": 2, "with_guide": False,
    }  # fmt: skip


def test_named_options_can_be_spread_over_groups() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, TripOptions, ["start"])
    add_options(parser.add_argument_group("speed"), TripOptions, ["days", "speed"])
    assert vars(parser.parse_args(["home"])) == {"start": "home", "days": 3, "speed": 4.5}


def test_the_help_text_is_that_of_the_declaration() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, TripOptions)
    text = " ".join(parser.format_help().split())
    for part in (
        "--days N Days, 100 % of them on foot. (default: 3)",
        "--season {summer,winter} When. (default: summer)",
        "--stops STOPS [STOPS ...] Where to sleep. (default: inn hut)",
        "--map-file FILE Picture of the way. --by-night Walk at night.",
        "--no-with-guide Switch this off: Take a guide.",
    ):
        assert part in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_says_what_each_argument_is(command: str) -> None:
    parser = build_parser(command)
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for action in subparsers.choices[command]._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action
    assert subparsers.choices[command].format_help()


def test_the_help_of_a_command_imports_nothing_heavy() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from llamafactory_embed.cli import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main([command, '--help'])\n"
        "heavy = 'torch transformers llamafactory numpy datasets gradio mteb pandas omegaconf'.split()\n"
        "print(*(name for name in heavy if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
