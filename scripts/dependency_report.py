"""`python scripts/dependency_report.py [--output FILE]`: what this package brings along, and what is known against it.

Lists every distribution that an installation of this package needs, with version and licence as its metadata say
them (nothing is fetched), and then what `pip-audit` finds if it is installed and the network answers. A distribution
whose metadata name no licence is listed as such. The exit code is 1 only where pip-audit finds something.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path


ROOT = "llamafactory-embed"
LICENCE_CLASSIFIER = "License :: OSI Approved :: "
LONGEST_LICENCE = 60  # some put the whole text there
NO_AUDIT = "pip-audit is not installed: `pip install pip-audit` to look for known vulnerabilities."


def needed_distributions(root: str = ROOT) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions below `root`, by their normalized names; optional ones count where installed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [root]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in found[name].requires or ()]
    return dict(sorted(found.items()))


def licence_of(distribution: importlib.metadata.Distribution) -> str:
    """The licence as the metadata say it: the expression, the classifiers, or the first line of the free text."""
    metadata = distribution.metadata
    classifiers = [each.removeprefix(LICENCE_CLASSIFIER) for each in metadata.get_all("Classifier") or ()
                   if each.startswith(LICENCE_CLASSIFIER)]  # fmt: skip
    free = (metadata.get("License") or "").strip().partition("\n")[0]
    said = metadata.get("License-Expression") or ", ".join(classifiers) or free
    return said[:LONGEST_LICENCE] if said and said != "UNKNOWN" else "(not said)"


def licence_table() -> list[str]:
    """A Markdown table of all of them."""
    rows = [f"| {name} | {each.version} | {licence_of(each)} |" for name, each in needed_distributions().items()]
    return ["| distribution | version | licence |", "|---|---|---|", *rows]


def audit() -> tuple[int, str]:
    """What pip-audit says of this environment; 0 where it cannot be asked."""
    if importlib.util.find_spec("pip_audit") is None:
        return 0, NO_AUDIT
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--progress-spinner", "off"], capture_output=True, text=True
    )
    is_finding = done.returncode != 0 and "vulnerabilit" in done.stdout + done.stderr
    return int(is_finding), f"{done.stdout}{done.stderr}".strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file to write (default: the terminal)")
    output = parser.parse_args().output
    code, said = audit()
    text = "\n".join(["# Dependencies", "", *licence_table(), "", "## Known vulnerabilities", "", said, ""])
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
