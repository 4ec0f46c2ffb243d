"""`python scripts/dependency_report.py [--output FILE]`: what this package brings along, and what is known against it.

Lists every distribution that an installation of this package needs, with version and licence as its metadata say
them (nothing is fetched), and then what `pip-audit` finds if it is installed and the network answers. A distribution
whose metadata name no licence is listed as such. The exit code is 1 only where pip-audit finds something.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return tell_findings(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        return 0, f"pip-audit has not answered:\n\n{done.stderr.strip()}"


def tell_findings(audited: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """pip-audit's findings, and first how many it could look up: for those that its service does not answer about,
    it says "no known vulnerabilities", too."""
    asked = [each for each in audited if "skip_reason" not in each]
    found = [(each, one) for each in asked for one in each["vulns"]]
    lines = [f"pip-audit was answered about {len(asked)} of {len(audited)} distributions and knows {len(found)} "
             "vulnerabilities of them."]  # fmt: skip
    if found:
        lines += ["", "| distribution | version | vulnerability | mended in |", "|---|---|---|---|"]
    for each, one in found:
        versions = ", ".join(one["fix_versions"]) or "no version yet"
        lines.append(f"| {each['name']} | {each['version']} | {one['id']} | {versions} |")
    return int(bool(found)), "\n".join(lines)


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
