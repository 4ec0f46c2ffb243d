"""Attention: every back-end on a packed row, compared with eager attention on single texts."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from .environment import installed_version
from .finding import PACKAGE, Finding, describe_error


TEXT_LENGTHS = (5, 1, 9, 3)  # of the packed row that the attention back-ends are given
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # largest difference from eager, relative to its largest value


def examine_attention() -> Iterator[Finding]:
    """Forward and backward of a packed row through a tiny bidirectional Llama, on every back-end and device."""
    import torch

    expected = run_texts_alone()
    has_gpu = torch.cuda.is_available()
    for device in ("cpu", "cuda") if has_gpu else ("cpu",):
        for backend in ("eager", "sdpa"):
            attempt = partial(run_packed, device, backend, torch.float32)
            yield try_kernel(f"{backend}, {device}", expected, attempt)
    if not has_gpu:
        yield Finding("flash_attention_2", "none", "needs a GPU; `flash_attn: auto` and `sdpa` work without")
        return

    package = installed_version("flash-attn")
    kernel = f"flash-attn {package}" if package else "torch's own kernel"
    advice = "" if package else f"faster still: pip install '{PACKAGE}[flash-attn]'"
    attempt = partial(run_packed, "cuda", "flash_attention_2", torch.bfloat16)
    finding = try_kernel("flash_attention_2, cuda", expected, attempt)
    yield replace(finding, value=f"{kernel}: {finding.value}", advice=advice)
    try:
        importlib.import_module("torch.nn.attention.varlen")
    except ImportError:
        yield Finding("torch varlen, cuda", "none", advice="pip install 'torch>=2.10'")
    else:
        yield try_kernel("torch varlen, cuda", run_row_by_sdpa(), run_row_by_varlen)


def try_kernel(name: str, expected: list[Any], attempt: Callable[[], list[Any]]) -> Finding:
    """Run twice (the first time compiles and allocates), compare output and gradient, and report the time."""
    import torch

    fatal: Literal["FAIL", "warn"] = "FAIL" if name.startswith(("eager", "sdpa")) else "warn"
    try:
        attempt()
        start = time.perf_counter()
        results = attempt()  # they are copied to the CPU, so the clock waits for the device
        milliseconds = 1000 * (time.perf_counter() - start)
    except Exception as error:
        return Finding(name, fatal, describe_error(error))

    difference = max(
        float((right - result.float()).abs().max() / right.abs().max())
        for right, result in zip(expected, results, strict=True)
    )
    tolerance = TOLERANCE["float32" if results[0].dtype == torch.float32 else "bfloat16"]
    measured = f"{milliseconds:.0f} ms, off by {difference:.0e}"
    if not difference <= tolerance:  # NaN is not
        return Finding(name, fatal, f"wrong result: {measured}, allowed are {tolerance:.0e}")
    return Finding(name, "ok", measured)


def build_tiny_llama(backend: str) -> Any:
    """A random bidirectional Llama whose weights are large enough for every token to matter, on the CPU in float32."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from attention_patch import patch_attention

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.1,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaModel(config)
    patch_attention(model, "bidirectional", backend=backend)  # type: ignore[arg-type]
    return model


def draw(*shape: int, seed: int) -> Any:
    """The same random numbers for every back-end."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_packed(device: str, backend: str, dtype: Any) -> list[Any]:
    """Hidden states and input gradient [T, D] of the texts as one packed row."""
    from attention_patch import packed_inputs

    model = build_tiny_llama(backend).to(device, dtype)
    total = sum(TEXT_LENGTHS)
    tokens = draw(1, total, model.config.hidden_size, seed=1).to(device, dtype).requires_grad_()
    hidden = model(inputs_embeds=tokens, **packed_inputs(TEXT_LENGTHS, device)).last_hidden_state
    hidden.backward(draw(*hidden.shape, seed=2).to(device, dtype))
    return [hidden[0].detach().cpu(), tokens.grad[0].cpu()]


def run_texts_alone() -> list[Any]:
    """The reference: each text in a separate forward, through eager attention."""
    import torch

    model = build_tiny_llama("eager")
    size = model.config.hidden_size
    tokens = draw(1, sum(TEXT_LENGTHS), size, seed=1).requires_grad_()
    texts = [model(inputs_embeds=text).last_hidden_state for text in tokens.split(TEXT_LENGTHS, dim=1)]
    hidden = torch.cat(texts, dim=1)
    hidden.backward(draw(*hidden.shape, seed=2))
    return [hidden[0].detach(), tokens.grad[0]]


def run_row_by_varlen() -> list[Any]:
    """torch's own variable-length kernel on queries, keys and values [T, heads, head size] of one packed row."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    row = draw(3, sum(TEXT_LENGTHS), 2, 32, seed=3).to("cuda", torch.bfloat16).requires_grad_()
    ends = torch.tensor([0, *TEXT_LENGTHS], dtype=torch.int32, device="cuda").cumsum(0, dtype=torch.int32)
    output = varlen_attn(*row.unbind(), ends, ends, max(TEXT_LENGTHS), max(TEXT_LENGTHS))
    output.backward(draw(*output.shape, seed=4).to("cuda", torch.bfloat16))
    return [output.detach().cpu(), row.grad.cpu()]


def run_row_by_sdpa() -> list[Any]:
    """The reference for `run_row_by_varlen`: text by text in float32."""
    import torch

    row = draw(3, sum(TEXT_LENGTHS), 2, 32, seed=3).requires_grad_()
    texts = [
        torch.nn.functional.scaled_dot_product_attention(*text.transpose(1, 2).unbind()).transpose(0, 1)
        for text in row.split(TEXT_LENGTHS, dim=1)
    ]
    output = torch.cat(texts)
    output.backward(draw(*output.shape, seed=4))
    return [output.detach(), row.grad]
