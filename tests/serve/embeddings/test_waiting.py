"""Who takes part in the next forward."""

from __future__ import annotations

import pytest
import torch

from llamafactory_embed.data.tokenization import TokenizedText
from llamafactory_embed.hparams.serving import ServingOptions
from llamafactory_embed.serve.embeddings.waiting import LONGEST_RETRY, OverloadError, Ticket, WaitingRequests


def ticket(*lengths: int) -> Ticket:
    return Ticket([TokenizedText([0] * length) for length in lengths])


def queue_of(*tickets: Ticket, batch_tokens: int = 10, **options: int) -> WaitingRequests:
    waiting = WaitingRequests(ServingOptions(**options), batch_tokens)
    for each in tickets:
        waiting.add(each)
    return waiting


def take(waiting: WaitingRequests, names: dict[Ticket, str]) -> list[tuple[str, int]]:
    return [(names[share.ticket], len(share.texts)) for share in waiting.take()]


def test_the_budget_is_filled_in_the_order_of_arrival() -> None:
    a, b, c = ticket(4), ticket(3, 3), ticket(1)
    waiting = queue_of(a, b, c)
    names = {a: "a", b: "b", c: "c"}
    assert waiting.tokens == 11
    assert take(waiting, names) == [("a", 1), ("b", 1), ("c", 1)]
    assert waiting.tokens == 3
    assert take(waiting, names) == [("b", 1)]
    assert waiting.tokens == 0


def test_a_large_request_takes_turns_with_those_that_came_later() -> None:
    large, first, second = ticket(*[5] * 5), ticket(6), ticket(6)
    waiting = queue_of(large, first, second)
    names = {large: "large", first: "first", second: "second"}
    turns = [take(waiting, names) for _ in range(5)]
    assert turns == [[("large", 2)], [("first", 1)], [("second", 1)], [("large", 2)], [("large", 1)]]


def test_small_requests_share_a_forward_with_a_large_one() -> None:
    """An eighth of a forward at a time: a request within it is whole after one forward, as if it were alone."""
    large, small = ticket(*[10] * 40), [ticket(*[5] * count) for count in (1, 2, 4)]
    waiting = queue_of(large, *small, batch_tokens=160)
    names = {large: "large"} | {each: f"small {len(each.texts)}" for each in small}
    assert take(waiting, names) == [("large", 12), ("small 1", 1), ("small 2", 2), ("small 4", 4)]
    assert take(waiting, names) == [("large", 16)]


def test_a_long_text_keeps_its_place_and_leaves_the_room_to_others() -> None:
    a, long, b = ticket(4), ticket(9), ticket(3)
    waiting = queue_of(a, long, b)
    names = {a: "a", long: "long", b: "b"}
    assert [take(waiting, names) for _ in range(2)] == [[("a", 1), ("b", 1)], [("long", 1)]]


def test_the_rest_of_a_request_goes_to_the_end() -> None:
    a, b = ticket(5, 5, 5), ticket(2)
    waiting = queue_of(a, b)
    names = {a: "a", b: "b"}
    assert take(waiting, names) == [("a", 1), ("b", 1)]
    assert take(waiting, names) == [("a", 2)]


def test_a_text_beyond_the_budget_goes_alone() -> None:
    a, b = ticket(11), ticket(1)
    waiting = queue_of(a, b)
    assert [take(waiting, {a: "a", b: "b"}) for _ in range(2)] == [[("a", 1)], [("b", 1)]]


def test_requests_alone() -> None:
    a, b = ticket(1, 1), ticket(1)
    waiting = queue_of(a, b, batch_requests=1)
    assert [take(waiting, {a: "a", b: "b"}) for _ in range(2)] == [[("a", 2)], [("b", 1)]]


def test_who_is_withdrawn_waits_no_more() -> None:
    a, b = ticket(8, 8), ticket(3)
    waiting = queue_of(a, b)
    names = {a: "a", b: "b"}
    assert take(waiting, names) == [("a", 1)]
    waiting.withdraw(a)
    waiting.withdraw(a)
    assert waiting.tokens == 3
    assert take(waiting, names) == [("b", 1)]
    waiting.close()
    assert waiting.take() == []


def test_what_waits_is_finished_after_the_queue_was_closed() -> None:
    a = ticket(1)
    waiting = queue_of(a)
    waiting.close()
    assert take(waiting, {a: "a"}) == [("a", 1)]
    assert waiting.take() == []


@pytest.mark.parametrize(("speed", "seconds"), [(0.0, 1), (4.0, 5), (1000.0, 1), (0.01, LONGEST_RETRY)])
def test_the_time_to_come_again_is_what_the_queue_takes(speed: float, seconds: int) -> None:
    waiting = queue_of(ticket(20), max_waiting_tokens=20)
    waiting.tokens_per_second = speed
    with pytest.raises(OverloadError, match=f"in {seconds} seconds") as refused:
        waiting.add(ticket(1))
    assert refused.value.retry_after == seconds


def test_embeddings_are_joined_in_the_order_of_the_texts() -> None:
    request = ticket(1, 1, 1)
    request.deliver(torch.tensor([[1.0], [2.0]]))
    assert not request.done.done()
    request.deliver(torch.tensor([[3.0]]))
    assert request.done.result().flatten().tolist() == [1, 2, 3]
    request.fail(RuntimeError())  # too late, and harmless
    assert request.done.result().shape == (3, 1)
