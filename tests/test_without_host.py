"""What computes and serves needs no LLaMA-Factory: it works in processes that cannot import it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from llamafactory_embed import Encoder
from llamafactory_embed.loading.checkpoint import save_checkpoint
from tests.embedders import INSTRUCTION, PROSE, make_embedder
from tests.tiny_models import save_tiny_model, tiny_tokenizer


REPOSITORY = Path(__file__).parents[1]

# Packages of which no module may import LLaMA-Factory at its top.
FREE_OF_HOST = (
    "llamafactory_embed.data",
    "llamafactory_embed.diffusion",
    "llamafactory_embed.encoder",
    "llamafactory_embed.evaluation",
    "llamafactory_embed.export.server",
    "llamafactory_embed.hparams",
    "llamafactory_embed.mining",
    "llamafactory_embed.model",
    "llamafactory_embed.sampling",
    "llamafactory_embed.serve.embeddings",
    "llamafactory_embed.stages",
    "llamafactory_embed.train.embed.losses",
)

# What `pip install` brings beside torch, transformers and peft: a machine that only embeds does without.
NOT_FOR_SERVING = ("llamafactory", "torchvision", "torchaudio", "trl", "datasets", "gradio", "matplotlib", "seqeval")


def run_without(hidden: tuple[str, ...], code: str, *arguments: str) -> None:
    """Run Python code in a process to which these packages do not exist."""
    lines = [
        "import sys",
        f"sys.path.insert(0, {str(REPOSITORY)!r})",
        f"sys.modules.update(dict.fromkeys({hidden!r}))",
    ]
    command = [sys.executable, "-c", "\n".join([*lines, code]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_rooms_below_training_import_without_the_host() -> None:
    run_without(
        ("llamafactory",),
        """
from importlib import import_module
from pkgutil import walk_packages

import attention_patch
for name in sys.argv[1:]:
    package = import_module(name)
    for module in walk_packages(package.__path__, f"{name}."):
        import_module(module.name)
""",
        *FREE_OF_HOST,
    )


@pytest.mark.parametrize("page", ["contrastive.md", "decisions/0022-serving-without-the-host.md"])
def test_the_pages_name_the_versions_that_the_package_requires(page: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    required = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    named = re.findall(r"'((?:transformers|peft)[<>=][^']*)'", (REPOSITORY / "docs" / page).read_text("utf-8"))
    assert {each.name: each.specifier for each in map(Requirement, named)} == {
        name: required[name] for name in ("transformers", "peft")
    }


def test_a_module_that_needs_the_host_is_found() -> None:
    with pytest.raises(AssertionError, match=r"import of llamafactory halted|No module named .llamafactory"):
        run_without(("llamafactory",), "import llamafactory_embed.train.trainer")


def test_an_encoder_serves_where_only_torch_transformers_and_peft_are_installed(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    model = make_embedder(lora_dropout=0.0, base_model=str(base), instructions={"next_line": INSTRUCTION})
    save_checkpoint(model, tmp_path / "checkpoint")
    tiny_tokenizer().save_pretrained(tmp_path / "checkpoint")
    code = """
import numpy
from llamafactory_embed import Encoder
embeddings = Encoder(sys.argv[1]).encode(sys.argv[3:], task="next_line")
numpy.save(sys.argv[2], embeddings)
"""
    run_without(NOT_FOR_SERVING, code, str(tmp_path / "checkpoint"), str(tmp_path / "embeddings.npy"), *PROSE)
    expected = Encoder(tmp_path / "checkpoint").encode(PROSE, task="next_line")
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), expected, atol=1e-6)
