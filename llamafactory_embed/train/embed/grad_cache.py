"""GradCache: the gradient of a loss over a large batch in the memory of a small one (Gao et al. 2021).

Every chunk but the largest is embedded without a graph, the loss gives the gradient of the embeddings, and these
are embedded again, under the same random numbers, to carry their parts of that gradient to the parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ...model.packed import PackedBatch


EmbedFunction = Callable[[Sequence[PackedBatch]], Tensor]


class RandomState:
    """The random numbers that a forward is about to draw, so that it can draw them again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def cached_backward(
    embed: EmbedFunction,
    chunks: Sequence[PackedBatch],
    loss_function: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], None],
    *,
    device: torch.device,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
    vectors_each: Sequence[int] | None = None,
    agreement: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """Run one step's backward and return its loss.

    `backward` takes a scalar and carries its gradient to the parameters (the Trainer's, which knows about scaling and
    DeepSpeed); `no_sync` keeps DDP from averaging before the last backward. `vectors_each` is how many vectors each of
    the texts has; None: one. `agreement` is put around what takes the memory of a chunk, before the loss and after it.
    """
    # One chunk's graph fits into the memory: the largest one's is kept, whose second forward would cost most. The last
    # one may be what little is left of the texts.
    kept = max(range(len(chunks)), key=lambda number: len(chunks[number].token_ids))
    others = [number for number in range(len(chunks)) if number != kept]
    before_the_last = no_sync if others else nullcontext
    states, parts = [], []
    with agreement():
        for number, chunk in enumerate(chunks):
            states.append(RandomState(device))
            with before_the_last() if number == kept else torch.no_grad():
                parts.append(embed([chunk]))
    after = RandomState(device)
    rows = [torch.tensor(places, device=device) for places in places_of_chunks(chunks, vectors_each)]
    order = torch.cat(rows).argsort()
    embeddings = torch.cat([part.detach() for part in parts])[order].float().requires_grad_()  # [N, d]
    kept_part = parts[kept]
    del parts

    with torch.enable_grad():
        loss = loss_function(embeddings)
    (gradient,) = torch.autograd.grad(loss, embeddings)

    def carry(part: Tensor, own_rows: Tensor) -> None:
        # A scalar whose gradient with respect to the parameters is the chunk's part of the loss's.
        backward((part.float() * gradient[own_rows]).sum())

    with agreement():
        with before_the_last():
            carry(kept_part, rows[kept])
        del kept_part
        for number in others:
            states[number].restore()
            with nullcontext() if number == others[-1] else no_sync():
                carry(embed([chunks[number]]), rows[number])
    after.restore()
    return loss.detach()


def places_of_chunks(chunks: Sequence[PackedBatch], vectors_each: Sequence[int] | None) -> list[list[int]]:
    """Where the embeddings of each chunk stand among those of all texts."""
    if vectors_each is None:
        return [sorted(chunk.text_indices) for chunk in chunks]
    starts = list(itertools.accumulate(vectors_each, initial=0))
    return [
        [place for text in sorted(chunk.text_indices) for place in range(starts[text], starts[text + 1])]
        for chunk in chunks
    ]


def split_batches(batches: Sequence[PackedBatch], count: int) -> list[PackedBatch]:
    """Cut packed batches further until there are `count`: engines that gather parameters in every forward (FSDP,
    ZeRO-3) wait forever if one rank runs fewer forwards than another."""
    result = list(batches)
    while len(result) < count:
        largest = max(range(len(result)), key=lambda index: len(result[index].lengths))
        batch = result[largest]
        texts = len(batch.lengths)
        if texts == 1:
            raise ValueError(
                f"One process has {len(result)} texts for {count} forwards of another: raise `max_tokens_per_batch`."
            )
        result[largest : largest + 1] = batch.split([texts // 2, texts - texts // 2])
    return result
