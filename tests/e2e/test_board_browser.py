"""LLaMA Board as a user sees it: a third-party stage is chosen, set, previewed, refused, run and seen, in Chromium."""

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


@pytest.fixture
def chromium() -> str:
    """Debian's browser."""
    pytest.importorskip("playwright", reason="no Playwright: pip install playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return path


@pytest.fixture
def board(chromium: str, third_party_site: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a Board that runs in a working folder of its own."""
    waiting_stage = tmp_path / "waiting" / "scaled_pt.py"
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
    log_path = tmp_path / "board.log"
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            ["llamafactory-cli", "webui"],
            env=environment,
            cwd=tmp_path,
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


def test_choose_set_preview_run_and_see(page: Any, tiny_llama: Path, prose_data: Path, tmp_path: Path) -> None:
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
    assert not (tmp_path / "saves").exists()

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
    assert not failure.is_visible(), (tmp_path / "board.log").read_text(encoding="utf-8")[-2000:]
    (tmp_path / "picture-was-seen").touch()
    expect(page.get_by_text("Finished.").last).to_be_visible()

    output = tmp_path / "saves" / "Custom" / "lora" / "scaled"
    saved = yaml.safe_load((output / "training_args.yaml").read_text(encoding="utf-8"))
    assert (saved["stage"], saved["loss_scale"], saved["loss_sign"]) == ("scaled-pt", 2.5, "minus")
    losses = read_losses(output)
    assert len(losses) == extra_arguments["max_steps"]
    assert all(loss < 0 for loss in losses)  # the sign has reached the loss
