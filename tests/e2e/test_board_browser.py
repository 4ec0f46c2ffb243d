"""LLaMA Board as a user sees it, in Chromium: a third-party stage is chosen, set, previewed, refused, run and seen; an
embedder is trained and looked at; a diffusion model is loaded for a chat.

`BOARD_PICTURES=docs/pictures BOARD_MODEL=models/smollm2-6-layers` makes the pictures of docs/board.md, light and dark,
with that model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import PATIENCE

from .conftest import SCRIPTS, read_losses


pytestmark = pytest.mark.process

MILLISECONDS = 1000 * PATIENCE

# Written behind the third-party stage: after its last step, a run waits for the test to have seen its picture. The
# Board looks at a run every two seconds, and never at one that ends before.
WAITING = """

import time
from pathlib import Path

from transformers import TrainerCallback


class WaitForTheTest(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        while not Path("picture-was-seen").exists():
            time.sleep(0.05)


run_without_waiting = run_scaled_pt


def run_scaled_pt(model_args, data_args, training_args, finetuning_args, generating_args, callbacks=None):
    callbacks = [*(callbacks or ()), WaitForTheTest()]
    run_without_waiting(model_args, data_args, training_args, finetuning_args, generating_args, callbacks)
"""

CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    " --disable-sync --no-first-run"
)


REPOSITORY = Path(__file__).parents[2]
PICTURES = os.environ.get("BOARD_PICTURES")


@pytest.fixture(scope="module")
def chromium() -> str:
    """Debian's browser."""
    pytest.importorskip("playwright", reason="no Playwright: pip install playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Board's working folder."""
    return tmp_path_factory.mktemp("board")


@pytest.fixture(scope="module")
def board(chromium: str, third_party_site: Path, workplace: Path) -> Iterator[str]:
    """The address of a Board that runs in a working folder of its own."""
    waiting_stage = workplace / "waiting" / "scaled_pt.py"
    waiting_stage.parent.mkdir()
    waiting_stage.write_text((third_party_site / "scaled_pt.py").read_text(encoding="utf-8") + WAITING, "utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{waiting_stage.parent}{os.pathsep}{third_party_site}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "0",
        "BROWSER": "true",  # the Board opens a browser: `true` does nothing
    }
    address = f"http://127.0.0.1:{port}"
    log_path = workplace / "board.log"
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            ["llamafactory-cli", "webui"],
            env=environment,
            cwd=workplace,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(address, process, log_path)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # and the run, should it still be going
            process.wait(timeout=PATIENCE)


def wait_for(address: str, process: subprocess.Popen[Any], log_path: Path) -> None:
    """Until the page answers, or the reason why it never will."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=PATIENCE).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"LLaMA Board did not start:\n{log_path.read_text(encoding='utf-8')[-2000:]}")


@pytest.fixture
def page(board: str, chromium: str) -> Iterator[Any]:
    """The Board's page in the browser."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM_FLAGS.split())
        page = browser.new_page(viewport={"width": 1500, "height": 1300}, locale="en-US")
        page.set_default_timeout(MILLISECONDS)
        page.goto(board)
        yield page
        browser.close()


def field(page: Any, label: str) -> Any:
    """The input under a label; other tabs, which are not seen, have some of the same labels."""
    title = page.get_by_test_id("block-info").filter(has_text=re.compile(rf"^\s*{re.escape(label)}\s*$"))
    return title.locator("visible=true").locator("xpath=..").locator("input, textarea").first


def type_into(page: Any, label: str, text: str) -> None:
    field(page, label).fill(text)
    field(page, label).blur()


def choose(page: Any, label: str, value: str) -> None:
    """Type into a dropdown and take what it offers."""
    field(page, label).click()
    field(page, label).fill(value)
    page.get_by_role("option", name=value, exact=True).click()


def click(page: Any, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).locator("visible=true").click()


def test_choose_set_preview_run_and_see(page: Any, tiny_llama: Path, prose_data: Path, workplace: Path) -> None:
    from playwright.sync_api import expect

    choose(page, "Model name", "Custom")
    type_into(page, "Model path", str(tiny_llama))
    type_into(page, "Data dir", str(prose_data))

    # choose the stage: its panel appears
    panel = page.locator("#stage-scaled-pt")
    expect(panel).to_be_hidden()
    choose(page, "Stage", "Scaled Pre-Training")
    expect(panel).to_be_visible()
    choose(page, "Dataset", "prose")
    page.keyboard.press("Escape")
    page.get_by_text("Extra configurations").click()
    extra_arguments = {
        "max_steps": 20,
        "logging_steps": 1,
        "gradient_accumulation_steps": 1,
        "preprocessing_num_workers": 1,
    }
    type_into(page, "Extra arguments", json.dumps(extra_arguments))
    expect(field(page, "Loss scale")).to_have_value("1")

    # set an option and preview it
    type_into(page, "Loss scale", "2.5")
    choose(page, "Loss sign", "minus")
    click(page, "Preview command")
    command = page.locator("code", has_text="llamafactory-cli train")
    expect(command).to_contain_text(re.compile(r"--stage scaled-pt \\\s"))
    expect(command).to_contain_text(re.compile(r"--loss_scale 2\.5 \\\s"))
    expect(command).to_contain_text(re.compile(r"--loss_sign minus\b"))

    # a bad value is refused with the command line's sentence, in the preview and before a run starts
    type_into(page, "Loss scale", "1000")
    for button in ("Preview command", "Start"):
        click(page, button)
        expect(command).to_have_count(0)
        expect(
            page.locator("p", has_text="loss_scale must be between 0.0 and 100.0, not 1000.0.").last
        ).to_be_visible()
    type_into(page, "Loss scale", "")
    click(page, "Preview command")
    expect(page.locator("p", has_text="loss_scale needs a value.").last).to_be_visible()
    assert not (workplace / "saves").exists()

    # a saved configuration brings everything back, the data set too
    type_into(page, "Loss scale", "2.5")
    type_into(page, "Config path", "mine.yaml")
    click(page, "Save arguments")
    expect(page.get_by_text("Arguments have been saved")).to_be_visible()
    page.reload()
    expect(field(page, "Model path")).to_have_value(str(tiny_llama))
    type_into(page, "Config path", "mine.yaml")
    click(page, "Load arguments")
    expect(panel).to_be_visible()
    expect(field(page, "Loss scale")).to_have_value("2.5")
    expect(page.get_by_text("prose", exact=True)).to_be_visible()

    # run, and see the loss picture
    type_into(page, "Output dir", "scaled")
    click(page, "Start")
    picture = page.locator("img[alt='Plot'], .matplotlib img, [data-testid=matplotlib] img").first
    failure = page.get_by_text("Failed. Exit code").last
    expect(picture.or_(failure).first).to_be_visible()
    assert not failure.is_visible(), (workplace / "board.log").read_text(encoding="utf-8")[-2000:]
    (workplace / "picture-was-seen").touch()
    expect(page.get_by_text("Finished.").last).to_be_visible()

    output = workplace / "saves" / "Custom" / "lora" / "scaled"
    saved = yaml.safe_load((output / "training_args.yaml").read_text(encoding="utf-8"))
    assert (saved["stage"], saved["loss_scale"], saved["loss_sign"]) == ("scaled-pt", 2.5, "minus")
    losses = read_losses(output)
    assert len(losses) == extra_arguments["max_steps"]
    assert all(loss < 0 for loss in losses)  # the sign has reached the loss


@pytest.fixture(scope="module")
def words_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dataset_dir` with a retrieval task and a held-out part of it."""
    folder = tmp_path_factory.mktemp("words")
    rows = (REPOSITORY / "data/wordnet/gloss_to_noun.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    entries = {}
    size = 320 if PICTURES else 40
    for name, part in (
        ("wordnet_gloss_to_noun", rows[:size]),
        ("wordnet_gloss_to_noun_heldout", rows[size : size + 60]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
        entries[name] = {"file_name": f"{name}.jsonl", "formatting": "retrieval"}
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).locator("visible=true").click()


def take_picture(page: Any, name: str, *, of: Any = None) -> None:
    """If pictures are asked for: the page, or a part of it, light and dark, in few colours."""
    if not PICTURES:
        return
    from PIL import Image

    page.set_viewport_size({"width": 1400, "height": 1000})
    for theme in ("light", "dark"):
        page.evaluate("theme => document.body.classList.toggle('dark', theme === 'dark')", theme)
        page.wait_for_timeout(700)  # colours fade
        path = Path(PICTURES).resolve() / f"board-{name}-{theme}.png"
        if of is None:
            page.screenshot(path=path, full_page=True)
        else:
            of.screenshot(path=path)
        Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    page.evaluate("document.body.classList.remove('dark')")


def test_an_embedder_is_trained_and_looked_at(page: Any, tiny_llama: Path, words_data: Path, workplace: Path) -> None:
    from playwright.sync_api import expect

    model = os.environ.get("BOARD_MODEL")
    choose(page, "Model name", "Custom")
    type_into(page, "Model path", str(Path(model).resolve() if PICTURES and model else tiny_llama))
    type_into(page, "Data dir", str(words_data))

    # the stage's name has room
    choose(page, "Stage", "Masked Next-Token Prediction")
    assert field(page, "Stage").evaluate("input => input.scrollWidth <= input.clientWidth")

    # six options are seen, and what the others have no use for is hidden
    choose(page, "Stage", "Contrastive Embedding")
    panel = page.locator("#stage-contrastive")
    expect(panel.get_by_test_id("block-info").locator("visible=true")).to_have_count(6)
    take_picture(page, "panel")
    latents = panel.get_by_text("Latent pooling", exact=True)
    expect(latents).to_be_hidden()
    choose(page, "Pooling", "latent")
    latents.click()
    expect(field(page, "Latents")).to_have_value("512")
    take_picture(page, "latents", of=panel)
    choose(page, "Pooling", "mean")
    expect(latents).to_be_hidden()

    # the panel speaks the language of the page
    choose(page, "Language", "zh")
    expect(field(page, "损失温度")).to_be_visible()
    expect(panel.get_by_text("相似度除以该值", exact=False)).to_be_visible()
    take_picture(page, "chinese")
    choose(page, "语言", "en")

    # a run shows its loss and nDCG
    choose(page, "Dataset", "wordnet_gloss_to_noun")
    page.keyboard.press("Escape")
    page.get_by_text("Extra configurations").click()
    steps = {"max_steps": 20, "save_steps": 10, "eval_steps": 5} if PICTURES else {"max_steps": 4, "save_steps": 2}
    extra_arguments = {
        "logging_steps": 1,
        "gradient_accumulation_steps": 1,
        "preprocessing_num_workers": 1,
        "cutoff_len": 32,
        "per_device_train_batch_size": 16 if PICTURES else 4,
        "learning_rate": 1e-3,
        "num_negatives": 0,
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_on_start": True,
        "eval_dataset": "wordnet_gloss_to_noun_heldout",
        **steps,
    }
    type_into(page, "Extra arguments", json.dumps(extra_arguments))
    page.get_by_text("Extra configurations").click()
    type_into(page, "Output dir", "words")
    click(page, "Start")
    end = page.get_by_text("Finished.").last.or_(page.get_by_text("Failed. Exit code").last)
    expect(end.first).to_be_visible(timeout=10 * MILLISECONDS)
    assert not page.get_by_text("Failed. Exit code").last.is_visible(), (workplace / "board.log").read_text()[-2000:]
    run = workplace / "saves" / "Custom" / "lora" / "words"
    evaluations = (run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in evaluations][:2] == [0, extra_arguments["eval_steps"]]
    plot = page.locator("img[alt='Plot'], [data-testid=matplotlib] img").first
    expect(plot).to_be_visible()
    take_picture(page, "run", of=plot.locator("xpath=ancestor::*[contains(@class, 'block')][1]"))

    look_at_the_run(page, expect)
    load_a_diffusion_model(page, expect, tiny_llama)


def look_at_the_run(page: Any, expect: Any) -> None:
    """Both models on a set, in all four views; then the fields of the benchmarks."""
    open_tab(page, "Embeddings")
    choose(page, "Evaluation sets", "wordnet_gloss_to_noun_heldout")
    page.keyboard.press("Escape")
    click(page, "Compare")
    expect(page.locator("#look-ranked .ranking")).to_have_count(2)
    expect(page.locator("#look-metrics .judged")).to_have_count(2)
    expect(page.locator("#look-ranked").get_by_text("saves/Custom/lora/words")).to_be_visible()
    expect(page.locator("#look-ranked .ranked")).to_have_count(20)
    take_picture(page, "rankings")
    open_tab(page, "Neighbours")
    type_into(page, "Text", "a large animal")
    click(page, "Find neighbours")
    expect(page.locator("#look-nearest .ranked")).to_have_count(20)
    for tab, part in (("Map", "look-map-plot"), ("Similarities", "look-similarities-plot")):
        open_tab(page, tab)
        expect(page.locator(f"#{part} img")).to_be_visible()
        take_picture(page, tab.lower(), of=page.locator(f"#{part}"))

    open_tab(page, "Evaluate & Predict")
    page.get_by_text("Embedding benchmarks (MTEB and local data)").click()
    choose(page, "Tasks", "followir")
    page.keyboard.press("Escape")
    click(page, "Evaluate embeddings")
    expect(page.get_by_text("Name at least one checkpoint")).to_be_visible()
    take_picture(page, "benchmarks", of=page.locator("#judge-panel"))


def load_a_diffusion_model(page: Any, expect: Any, model: Path) -> None:
    """Its fields appear with it, and say what it will not do."""
    type_into(page, "Model path", str(model))
    open_tab(page, "Chat")
    fields = page.locator("#chat-denoising")
    expect(fields).to_be_hidden()
    type_into(page, "Extra arguments", json.dumps({"stage": "ddm-sft", "diffusion_steps": 5}))
    click(page, "Load model")
    expect(fields).to_be_visible()
    expect(field(page, "Diffusion steps")).to_have_value("5")
    choose(page, "Cache", "dual")
    expect(page.get_by_text("works block by block: set", exact=False)).to_be_visible()
    choose(page, "Cache", "none")
    type_into(page, "Diffusion steps", "2")
    take_picture(page, "denoising", of=fields)
