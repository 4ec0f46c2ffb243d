"""No file that a command writes holds one of the secrets that stand in recipes, command lines, addresses and the
environment; nor do the lines that it prints, which people keep as logs."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_embed.chain.definition import read_chain
from llamafactory_embed.chain.report import write_chain_page
from llamafactory_embed.chain.run import run_chain
from llamafactory_embed.demo.quiet import output_to
from llamafactory_embed.demo.report import DemoOutcome, write_report
from llamafactory_embed.demo.results import METRICS
from llamafactory_embed.encoding.encode import encode_file
from llamafactory_embed.encoding.options import EncodingOptions
from llamafactory_embed.evaluation.report import Line, Summary, write_summary
from llamafactory_embed.evaluation.run import record_failure
from llamafactory_embed.export.export import export_checkpoint
from llamafactory_embed.export.options import ExportOptions
from llamafactory_embed.merging.merge import merge_checkpoints
from llamafactory_embed.merging.plan import Merge
from llamafactory_embed.mining.mine import mine
from llamafactory_embed.mining.options import MiningOptions
from llamafactory_embed.recipe.convert import convert_file
from llamafactory_embed.recipe.new import NewRecipeOptions, new_recipe
from llamafactory_embed.recipe.pack import pack_recipe
from tests.e2e.contrastive_runs import perform, recipe, write_data
from tests.embedders import PROSE
from tests.serve.embeddings.servers import listening, make_server


MARK = "PLANTED"
ENVIRONMENT = {
    name: f"{MARK}-{name}-1234"
    for name in ("HF_TOKEN", "API_KEY", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
}
STORAGE = f"s3://user:{MARK}-storage@bucket/runs"
OPTIONS: dict[str, Any] = {
    "hub_token": f"{MARK}-hub-1234",
    "hf_hub_token": f"{MARK}-hf-hub-1234",
    "swanlab_api_key": f"{MARK}-swanlab-1234",
    "ray_init_kwargs": {
        "_redis_password": f"{MARK}-redis",
        "storage": STORAGE,
        "runtime_env": {"env_vars": {"WANDB_API_KEY": f"{MARK}-x"}},
    },
    "run_name": f"run of {MARK}-hub-1234 and {ENVIRONMENT['HF_TOKEN']}",
}
SHORT = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "batch_size": 2, "plot_loss": True}


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data") / "data")
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    info["elsewhere"] = {"hf_hub_url": f"https://user:{MARK}-url@hub.example/rows", "token": f"{MARK}-entry"}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Path:
    """What a run wrote, its checkpoint among it, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    with output_to(folder / "printed.log"):
        perform(recipe(model, data, folder / "run", **SHORT, **OPTIONS))
    return folder


def leaks(folder: Path) -> dict[str, str]:
    """Files with a secret, and the place of the first."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    found = {}
    for path in files:
        content = path.read_bytes()
        if (place := content.find(MARK.encode())) >= 0:
            found[str(path.relative_to(folder))] = content[max(0, place - 40) : place + 30].decode("utf-8", "replace")
    return found


def test_a_run(trained: Path) -> None:
    assert (trained / "run" / "checkpoint-1" / "recipe.yaml").is_file()
    assert leaks(trained) == {}


def write_recipe(folder: Path, data: Path) -> Path:
    """A recipe of somebody who keeps everything in it, outside of what is looked at."""
    content = recipe("model", data, "saves/x", **OPTIONS)
    path = data.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def export(folder: Path, checkpoint: Path, data: Path) -> None:
    export_checkpoint(checkpoint, folder / "exported", ExportOptions())


def merge(folder: Path, checkpoint: Path, data: Path) -> None:
    merge_checkpoints(Merge((checkpoint, checkpoint.parent), (0.5, 0.5)), folder / "merged")


def encode(folder: Path, checkpoint: Path, data: Path) -> None:
    texts = data.parent / "texts.txt"
    texts.write_text("\n".join(PROSE[:4]) + "\n", encoding="utf-8")
    encode_file(EncodingOptions(source=str(checkpoint), input=str(texts), output=str(folder / "v.npy")), print)


def mine_rows(folder: Path, checkpoint: Path, data: Path) -> None:
    options: dict[str, Any] = {"model": str(checkpoint), "data": "nouns", "dataset_dir": str(data)}
    mine(MiningOptions(output=str(folder / "mined.jsonl"), num_negatives=2, ranks="2:20", keep_work=True, **options))


def evaluate(folder: Path, checkpoint: Path, data: Path) -> None:
    summary = Summary(["model"], [Line("task", "ndcg@10", "group", {"model": 0.5})])
    try:
        raise ConnectionError(f"https://user:{MARK}-url@hub.example refused {ENVIRONMENT['HF_TOKEN']}")
    except ConnectionError as error:
        record_failure("model on task", error, folder, summary)
    write_summary(summary, folder)


def pack(folder: Path, checkpoint: Path, data: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data.parent)
        (folder / "packed.yaml").write_text(pack_recipe(write_recipe(folder, data)), encoding="utf-8")


def new(folder: Path, checkpoint: Path, data: Path) -> None:
    base = json.loads((checkpoint / "embedding_config.json").read_text(encoding="utf-8"))["base_model"] or checkpoint
    text = new_recipe(NewRecipeOptions("contrastive", str(base), "nouns", "24GB"))
    (folder / "new.yaml").write_text(text, encoding="utf-8")


def convert(folder: Path, checkpoint: Path, data: Path) -> None:
    script, written = data.parent / "old.sh", folder / "converted.yaml"
    script.write_text(
        f"export WANDB_API_KEY={MARK}-variable\n"
        f"python -m tevatron.retriever.driver.train --model_name_or_path https://me:{MARK}-url@hub.example/model "
        f"--hub_token {MARK}-flag-1234 --run_name run-{MARK}-flag-1234-$WANDB_API_KEY --output_dir {STORAGE} "
        "--temperature 0.02 --lora\n",
        encoding="utf-8",
    )
    written.write_text(convert_file(script, "tevatron"), encoding="utf-8")
    assert "loss_temperature: 0.02" in written.read_text(encoding="utf-8")


def chain(folder: Path, checkpoint: Path, data: Path) -> None:
    """Steps that run nothing; what the training is given has its secrets."""
    path, given = data.parent / "chain.yaml", []
    steps = [
        {"name": "a", "train": str(write_recipe(folder, data)), "options": {"ms_hub_token": f"{MARK}-step"}},
        {"name": "b", "export": "$a", "options": {"push_to": STORAGE, "hub_token": f"{MARK}-step"}},
    ]
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "chain"), "steps": steps}), encoding="utf-8")
    read = read_chain(path)

    def runner(command: list[str], log: Path) -> int:
        if command[1] == "train":
            given.append(yaml.safe_load(Path(command[2]).read_text(encoding="utf-8")))
        return 0

    write_chain_page(read, run_chain(read, print, runner))
    assert {name: given[0][name] for name in OPTIONS} == OPTIONS
    assert given[0]["ms_hub_token"] == f"{MARK}-step"


def demo(folder: Path, checkpoint: Path, data: Path) -> None:
    rows = {"before": dict.fromkeys(METRICS, 0.1), "after": dict.fromkeys(METRICS, 0.2)}
    command = f"llamafactory-cli train recipe.yaml storage={STORAGE} hub_token={MARK}-word"
    remarks = [f"The model came from https://me:{MARK}-url@hub.example, with {ENVIRONMENT['HF_TOKEN']}."]
    write_report(DemoOutcome(folder, command, 1, 1.0, rows, [], [], [(1, 2.0), (2, 1.0)], remarks, "a machine"))


def serve(folder: Path, checkpoint: Path, data: Path) -> None:
    """Right and wrong keys, in the header and in the address."""
    with output_to(folder / "serve.log"), listening(make_server(api_key=ENVIRONMENT["API_KEY"])) as address:
        for key, status in ((ENVIRONMENT["API_KEY"], 200), (f"{MARK}-wrong", 401)):
            for body in (b'{"input": "a"}', b"{"):
                request = urllib.request.Request(
                    f"{address}/v1/embeddings?api_key={key}", body, {"Authorization": f"Bearer {key}"}
                )
                try:
                    answered = urllib.request.urlopen(request).status
                except urllib.error.HTTPError as error:
                    answered = error.code
                assert answered == (400 if status == 200 and body == b"{" else status)
        logging.getLogger("uvicorn.error").error("the log is looked at")


COMMANDS = (export, merge, encode, mine_rows, evaluate, pack, new, convert, chain, demo, serve)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_command(command: Callable[[Path, Path, Path], None], trained: Path, data: Path, tmp_path: Path) -> None:
    with output_to(tmp_path / "printed.log"):
        command(tmp_path, trained / "run" / "checkpoint-1", data)
    assert leaks(tmp_path) == {}
