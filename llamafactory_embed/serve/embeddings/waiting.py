"""Requests that wait for the model, and who takes part in the next forward.

Threads meet here: the event loop adds requests and withdraws those whose client has gone, one worker takes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple

import torch
from torch import Tensor

from ...data.tokenization import TokenizedText
from ...hparams.serving import ServingOptions


TURNS = 8  # of a forward, at least: what a request gives at a time, if it is more than one text
LONGEST_RETRY = 60  # seconds; who waits longer has long given up


class OverloadError(Exception):
    """The queue is full."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The server has more to do than it may let wait: try again in {retry_after} seconds.")
        self.retry_after = retry_after


class ModelStoppedError(Exception):
    """The model's thread has ended: no embeddings will come."""

    def __init__(self) -> None:
        super().__init__("The thread of the model has ended: start the server again.")


class Ticket:
    """The texts of one request on their way through the model, and its embeddings [N, d] when all are there."""

    def __init__(self, texts: Sequence[TokenizedText]) -> None:
        self.texts = texts
        self.done: Future[Tensor] = Future()
        self.taken = 0  # that many texts were given to the model
        self._parts: list[Tensor] = []

    def tokens(self, start: int, end: int | None = None) -> int:
        """The tokens of some of its texts."""
        return sum(len(text.token_ids) for text in self.texts[start:end])

    def count_fitting(self, room: int) -> int:
        """How many of the texts that are left, in their order, have no more than `room` tokens together."""
        count = 0
        for text in self.texts[self.taken :]:
            room -= len(text.token_ids)
            if room < 0:
                break
            count += 1
        return count

    def deliver(self, embeddings: Tensor) -> None:
        """The embeddings of the texts that follow those which were delivered."""
        self._parts.append(embeddings)
        if sum(map(len, self._parts)) == len(self.texts):
            with contextlib.suppress(InvalidStateError):  # the client has gone in the meantime
                self.done.set_result(torch.cat(self._parts))

    def fail(self, error: Exception) -> None:
        """None of its embeddings will come."""
        with contextlib.suppress(InvalidStateError):
            self.done.set_exception(error)


class Share(NamedTuple):
    """Some texts of a request in one forward."""

    ticket: Ticket
    texts: Sequence[TokenizedText]


class WaitingRequests:
    """The queue. First comes who has waited longest since its texts last took part in a forward. A large request takes
    turns with those that arrive after it, also within a forward, and none waits for ever."""

    def __init__(self, options: ServingOptions, batch_tokens: int) -> None:
        self.options = options
        self.batch_tokens = batch_tokens
        self.places = 0
        """Requests that are being tokenized, wait, or are in the model."""
        self.tokens = 0
        """Tokens that wait."""
        self.tokens_per_second = 0.0
        """How fast the worker was lately."""
        self.given_up = False
        """Whether nobody takes any more."""
        self._waiting: deque[Ticket] = deque()
        self._closed = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Room for one request, from its arrival until its embeddings are there or its client has gone."""
        with self._changed:
            if self.places >= self.options.max_waiting_requests:
                raise OverloadError(self._retry_after())
            self.places += 1
        try:
            yield
        finally:
            with self._changed:
                self.places -= 1

    def check_room(self, tokens: int) -> None:
        """Refuse a request of so many tokens, or more, while too many others wait."""
        if self.tokens and self.tokens + tokens > self.options.max_waiting_tokens:
            raise OverloadError(self._retry_after())

    def add(self, ticket: Ticket) -> None:
        """Let a request wait."""
        tokens = ticket.tokens(0)
        with self._changed:
            if self.given_up:
                raise ModelStoppedError
            self.check_room(tokens)
            self.tokens += tokens
            self._waiting.append(ticket)
            self._changed.notify()

    def withdraw(self, ticket: Ticket) -> None:
        """Forget a request, if it still waits."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self.tokens -= ticket.tokens(ticket.taken)

    def close(self) -> None:
        """Let the worker finish what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def give_up(self, taken: Sequence[Ticket]) -> None:
        """Nobody takes any more: those who wait, and those that were `taken`, are told."""
        with self._changed:
            self.given_up = self._closed = True
            for ticket in {*taken, *self._waiting}:
                ticket.fail(ModelStoppedError())
            self._waiting.clear()
            self.tokens = 0

    def take(self) -> list[Share]:
        """The next forward: texts of at most `batch_tokens` tokens, or one that is longer. Waits for a request; empty
        when the queue was closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            before = self._fill()
            shares = [Share(ticket, ticket.texts[first : ticket.taken]) for ticket, first in before.items()]
            self.tokens -= sum(ticket.tokens(first, ticket.taken) for ticket, first in before.items())
            left_over = [ticket for ticket in before if ticket.taken < len(ticket.texts)]
            self._waiting = deque(ticket for ticket in self._waiting if ticket not in before)
            self._waiting.extend(left_over)
            return shares

    def _fill(self) -> dict[Ticket, int]:
        """Give texts to the next forward: in turn, no request more than a part of it at a time, until it is full. How
        many each that takes part had given before."""
        before: dict[Ticket, int] = {}
        room = self.batch_tokens
        turns = deque(itertools.islice(self._waiting, self.options.batch_requests))
        while turns:
            ticket = turns.popleft()
            count = ticket.count_fitting(min(room, self.batch_tokens // TURNS)) or min(1, ticket.count_fitting(room))
            count = count or (0 if before else 1)
            if count:
                before.setdefault(ticket, ticket.taken)
                room -= ticket.tokens(ticket.taken, ticket.taken + count)
                ticket.taken += count
                if ticket.taken < len(ticket.texts):
                    turns.append(ticket)
        return before

    def _retry_after(self) -> int:
        """Seconds until what waits now will have been done."""
        seconds = self.tokens / self.tokens_per_second if self.tokens_per_second else 1
        return max(1, min(LONGEST_RETRY, math.ceil(seconds)))
