"""`python -m tests.soak.works NAME FOLDER SECONDS`: one piece of work, over and over, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak.samples import Progress


BATCH_SIZE = 8
CLIENTS = 256
# Of `llamafactory-embed serve`, small enough for all these clients to meet each limit.
SERVING = {"max-body-bytes": 100_000, "max-waiting-requests": 96, "max-waiting-tokens": 20_000, "read-timeout": 20}
CALM_SECONDS, WAVE_SECONDS = 30.0, 60.0
PAUSE = 10.0  # between a client's requests: one that goes at once would be a flood otherwise, and nothing else


def train(folder: Path, seconds: float, progress: Progress) -> None:
    """One long run of `stage: contrastive`, with a worker that reads data, checkpoints and evaluations."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    from tests.e2e import contrastive_runs
    from tests.tiny_models import save_tiny_model

    class Stop(TrainerCallback):
        end = float("inf")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not progress.done:
                self.end = time.monotonic() + seconds
            progress.add(BATCH_SIZE)
            control.should_training_stop = time.monotonic() >= self.end

    recipe = contrastive_runs.recipe(
        save_tiny_model(folder / "model"),
        contrastive_runs.write_data(folder / "data"),
        folder / "run",
        batch_size=BATCH_SIZE,
        max_steps=10**7,
        optim="adamw_torch",
        learning_rate=1e-4,
        max_grad_norm=1.0,
        logging_steps=100,
        dataloader_num_workers=1,
        save_strategy="steps",
        save_steps=100,
        save_total_limit=2,
        eval_dataset="nouns_heldout",
        eval_strategy="steps",
        eval_steps=100,
    )
    run_exp(recipe, callbacks=[Stop()])


def encode(folder: Path, seconds: float, progress: Progress) -> None:
    """Files of texts to files of vectors, each job with a model that it loads; between them, one model that stays."""
    from llamafactory_embed import Encoder
    from llamafactory_embed.encoding.encode import encode_file
    from llamafactory_embed.encoding.options import EncodingOptions
    from tests.embedders import PROSE

    checkpoint = save_embedder(folder)
    texts = [f"{number} {text}" for number in range(20) for text in PROSE]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    options = EncodingOptions(
        source=str(checkpoint), input=str(folder / "texts.txt"), output=str(folder / "vectors.npy"), overwrite=True
    )
    encoder = Encoder(checkpoint, device="cpu")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        encode_file(options, lambda line: None)
        progress.add(len(texts))
        encoder.encode(texts)
        progress.add(len(texts))


def mine(folder: Path, seconds: float, progress: Progress) -> None:
    """Hard negatives for the same rows, by each index in turn."""
    from llamafactory_embed.mining.mine import mine as mine_rows
    from llamafactory_embed.mining.options import MiningOptions
    from tests.e2e.contrastive_runs import WORDNET

    checkpoint = save_embedder(folder)
    rows = (WORDNET / "gloss_to_noun.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for index in ("flat", "hnsw"):
            options: dict[str, Any] = {"index": index, "ranks": "2:20", "num_negatives": 4, "chunk_size": 128}
            options |= {"model": str(checkpoint), "data": str(folder / "rows.jsonl"), "overwrite": True}
            mine_rows(MiningOptions(output=str(folder / f"{index}.jsonl"), **options))
            progress.add(len(rows))


def serve(folder: Path, seconds: float, progress: Progress) -> None:
    """A server in a process of its own, which is the one that is looked at, and its clients in this one: a while of
    right ones only, then all kinds, in the end right ones only again."""
    from llamafactory_embed import Encoder
    from tests.embedders import PROSE
    from tests.serve.embeddings.storm import KINDS, PATIENT, Report, storm

    checkpoint = save_embedder(folder)
    texts = [text[: 10 + 9 * number] for number, text in enumerate(PROSE[:12])]
    expected = dict(zip(texts, Encoder(checkpoint, device="cpu").encode(texts).tolist(), strict=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "import sys; from llamafactory_embed.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", start, "serve", str(checkpoint), "--device", "cpu"]
    words += ["--api-host", "127.0.0.1", "--api-port", str(port)]
    words += [word for name, value in SERVING.items() for word in (f"--{name}", str(value))]
    waves: list[dict[str, Any]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without its server

    async def wave(kinds: tuple[str, ...], length: float, clients: int) -> None:
        report, before = Report(), progress.done

        async def count() -> None:
            while True:
                await asyncio.sleep(1)
                progress.set(before + report.right)

        counting = asyncio.ensure_future(count())
        await storm(f"http://127.0.0.1:{port}", expected, clients, rounds=1, seconds=length, kinds=kinds,
                    drip=1.0, pause=PAUSE, seed=len(waves), report=report)  # fmt: skip
        counting.cancel()
        progress.set(before + report.right)
        waves.append({"kinds": "right ones" if kinds == PATIENT else "all kinds", **report.summary()})
        (folder / "waves.json").write_text(json.dumps(waves, indent=1), encoding="utf-8")

    async def waves_for(length: float) -> None:
        right = sum(KINDS[number % len(KINDS)] in PATIENT for number in range(CLIENTS))
        end = time.monotonic() + length - CALM_SECONDS
        await wave(PATIENT, CALM_SECONDS, right)
        while time.monotonic() < end:
            await wave(KINDS, min(WAVE_SECONDS, length), CLIENTS)
        await wave(PATIENT, CALM_SECONDS, right)

    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("Serving"), "the server did not start"
            wait_for(port)
            announce(folder, server.pid)
            asyncio.run(waves_for(seconds))
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0, f"the server ended with {server.returncode}"
    assert not any(each["wrong"] for each in waves)


def wait_for(port: int) -> None:
    """Until somebody listens there."""
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)


def save_embedder(folder: Path) -> Path:
    """A checkpoint of a tiny model, as training leaves it."""
    from tests.embedders import make_embedder
    from tests.export.checkpoints import Trained
    from tests.tiny_models import save_tiny_model

    model = save_tiny_model(folder / "model")
    return Trained.save(make_embedder(base_model=str(model)).eval(), folder / "embedder").folder


WORKS: dict[str, Callable[[Path, float, Progress], None]] = {
    "train": train, "encode": encode, "mine": mine, "serve": serve,
}  # fmt: skip


def announce(folder: Path, process: int) -> None:
    """The process to look at; its work begins."""
    (folder / "process.new").write_text(str(process), encoding="utf-8")
    (folder / "process.new").rename(folder / "process")


def main(name: str, folder: Path, seconds: float) -> None:
    progress = Progress(folder / "progress")
    if name != "serve":
        announce(folder, os.getpid())
    WORKS[name](folder, seconds, progress)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
