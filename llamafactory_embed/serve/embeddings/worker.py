"""The one thread that owns the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from ...encoder.encoder import Encoder
from .metrics import ServingMetrics
from .waiting import Share, WaitingRequests


logger = logging.getLogger(__name__)
INERTIA = 0.8  # of the measured speed; the rest is the last forward's


class EmbeddingWorker(threading.Thread):
    """Runs one forward after the other with whatever waits when the last one has ended; ends when the queue is
    closed and empty."""

    def __init__(self, encoder: Encoder, waiting: WaitingRequests, metrics: ServingMetrics) -> None:
        super().__init__(name="embedding-worker", daemon=True)
        self.encoder = encoder
        self.waiting = waiting
        self.metrics = metrics

    def run(self) -> None:
        """Until the end. Should something end it before, nobody waits for it any longer."""
        shares: list[Share] = []
        try:
            while shares := self.waiting.take():
                self._embed(shares)
        finally:
            self.waiting.give_up([share.ticket for share in shares])

    def _embed(self, shares: Sequence[Share]) -> None:
        texts = [text for share in shares for text in share.texts]
        start = time.perf_counter()
        try:
            embeddings = self.encoder.encode_tokens(texts)
        except Exception as error:  # out of memory, for instance: these requests fail, the next may not
            logger.exception("A forward of %d texts failed.", len(texts))
            for share in shares:
                self.waiting.withdraw(share.ticket)
                share.ticket.fail(error)
            return
        self._measure(sum(len(text.token_ids) for text in texts), len(texts), time.perf_counter() - start)
        for share, part in zip(shares, embeddings.split([len(share.texts) for share in shares]), strict=True):
            share.ticket.deliver(part)

    def _measure(self, tokens: int, texts: int, seconds: float) -> None:
        before, speed = self.waiting.tokens_per_second, tokens / max(seconds, 1e-9)
        self.waiting.tokens_per_second = INERTIA * before + (1 - INERTIA) * speed if before else speed
        self.metrics.count_forward(texts, tokens, seconds)
