"""The recipes of tDRO make a chain that runs, and its page explains every option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llamafactory.train.tuner import run_exp
from omegaconf import OmegaConf

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval.weights import task_shares
from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.hparams.tdro import TdroOptions
from tests.docs.option_pages import declared_options, explained_options
from tests.golden.case_files import GOLDEN_DIR
from tests.tiny_models import save_tiny_model


ROOT = Path(__file__).parents[2]
TASKS = ("gloss_to_noun", "example_to_word", "word_to_broader")
CHAINS = {
    "quickstart/tdro": (["s0", "s1", "s2"], "llama"),
    "tdro/qwen1_5": (["s0", "s1", "s2_curr", "s2_top70"], "qwen2"),
}
OPTIONS_OF_GPUS = ("deepspeed", "flash_attn", "bf16")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    info = {}
    for task in TASKS:
        lines = (ROOT / "data" / "wordnet" / f"{task}.jsonl").read_text("utf-8").splitlines()[:40]
        (folder / f"{task}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        info[task] = {"file_name": f"{task}.jsonl", "formatting": "retrieval"}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.mark.parametrize("chain", CHAINS)
def test_chain(chain: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each recipe with a tiny model, small data and two steps; paths between the recipes are their own."""
    stages, architecture = CHAINS[chain]
    monkeypatch.chdir(tmp_path)
    model = str(save_tiny_model(tmp_path / "model", architecture))
    for stage in stages:
        recipe: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(ROOT / "examples" / f"{chain}_{stage}.yaml"))
        base = recipe["model_name_or_path"]
        tiny = {name: value for name, value in recipe.items() if name not in OPTIONS_OF_GPUS}
        tiny |= {name: model for name in ("model_name_or_path", "ref_model") if recipe.get(name) == base}
        tiny |= {"dataset": ",".join(TASKS), "dataset_dir": str(data), "report_to": "none", "use_cpu": True}
        tiny |= {"per_device_train_batch_size": 4, "max_steps": 2, "warmup_steps": 0, "dataloader_num_workers": 0}
        tiny |= {"cutoff_len": 64, "save_strategy": "no", "do_eval": False, "eval_dataset": None}
        tiny.pop("eval_dataset")
        tiny |= {name: 64 for name in ("query_max_length", "document_max_length") if name in recipe}
        run_exp(tiny)
        if recipe["stage"] == "tdro":
            history = Path(recipe["output_dir"], "task_weights.jsonl").read_text("utf-8").splitlines()
            assert len(history) == 2
            assert all(json.loads(line)["reference_loss"] for line in history)
        assert Encoder(recipe["output_dir"], device="cpu").encode("a text").any()


@pytest.mark.parametrize("name", ["curr", "mean", "ema", "top70"])
def test_the_weights_of_the_authors_fit_the_recipes(name: str, tmp_path: Path) -> None:
    """Their names are those of the tasks in dataset_info.json."""
    cases = [json.loads(path.read_text("utf-8")) for path in (GOLDEN_DIR / "tdro" / "export").rglob("case.json")]
    recipe: Any = OmegaConf.load(ROOT / "examples" / "tdro" / "qwen1_5_s2_curr.yaml")
    info = json.loads((ROOT / "data" / "dataset_info.json").read_text("utf-8"))
    tasks = [info[entry.strip()]["task"] for entry in recipe["dataset"].split(",")]
    published = [each for case in cases for each in case["subcases"] if each["id"].startswith("shipped")]
    if not published:
        pytest.skip(f"{GOLDEN_DIR} holds no published weights")
    for subcase in published:
        file = tmp_path / "weights.json"
        file.write_text(json.dumps(subcase["expected_files"][f"{name}_weights.json"]), encoding="utf-8")
        assert set(tasks) == set(subcase["domain_names_in_group_order"])
        shares = task_shares(str(file), tasks, [subcase["sizes"][task] for task in tasks])
        assert shares is not None
        assert sum(shares) == pytest.approx(1)


def test_page_explains_every_own_option_once_with_its_default() -> None:
    """What it shares with the contrastive stage is explained there."""
    own = declared_options(TdroOptions, explained_elsewhere=ContrastiveOptions)
    assert explained_options("tdro.md") == own
    assert all(name.startswith("tdro_") for name, _ in own)
