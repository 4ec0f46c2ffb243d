"""The leak matrix of attention_patch, and the equalities that everything above it relies on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, PreTrainedModel

import attention_patch
from attention_patch import (
    annealed_inputs,
    annealed_mask,
    annealing_ratio,
    mask_inputs,
    packed_inputs,
    patch_attention,
)
from tests.attention.reference import FlashReference, flash_on_cpu, torch_kernel_on_cpu, visible
from tests.tiny_models import FAMILIES, tiny_model


# Every family as it is built by default, and two that have a sliding window only when asked.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in FAMILIES} | {
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "phi3-window": ("phi3", {"sliding_window": 3}),
}
BIDIRECTIONAL = ("dream", "llada")  # without a patch
WINDOWED = ("mistral", "gemma2", "gemma3", "qwen2-window", "phi3-window")
BACKENDS = ("eager", "sdpa", "flash")
ANNEALED = {"annealed-0": 0.0, "annealed-0.5": 0.5, "annealed-1": 1.0}
MODES = ("causal", "bidirectional", *ANNEALED)
LENGTHS = [7, 2, 2, 1, 9]  # texts of a packed row: longer than every window, a run of equals, a single token

variants = pytest.mark.parametrize("variant", VARIANTS)
backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def shared_model(variant: str) -> PreTrainedModel:
    """A model that tests may patch but must leave as it was."""
    family, overrides = VARIANTS[variant]
    return tiny_model(family, **overrides)


def layer_window(model: PreTrainedModel, layer: int) -> int | None:
    """The sliding window of a layer, read off the config."""
    config = model.config
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] == "full_attention":
        return None
    return getattr(config, "sliding_window", None)


@functools.cache
def one_layer_attends(variant: str, layer: int) -> PreTrainedModel:
    """The base model of a variant where only this layer's attention moves anything between positions."""
    model = copy.deepcopy(shared_model(variant)).base_model
    for index, module in enumerate(attention_patch._attention_modules(model)):
        if index != layer:
            name = {"gpt2": "c_proj", "llada": "attn_out"}.get(variant, "o_proj")
            nn.init.zeros_(module.get_parameter(f"{name}.weight"))
    return model


@contextmanager
def patched(model: nn.Module, mode: str, backend: str, **options: Any) -> Iterator[FlashReference | None]:
    """The model on a back-end; `flash` is the reference of the flash-attn functions, `torch-flash` that of torch's."""
    kernels = {"flash": flash_on_cpu, "torch-flash": torch_kernel_on_cpu}.get(backend, nullcontext)
    with kernels() as reference:
        name = "flash_attention_2" if "flash" in backend else backend
        with patch_attention(model, mode, backend=name, **options):  # type: ignore[arg-type]
            yield reference


def embeddings_of(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model.get_input_embeddings()(tokens)


def hidden_states(model: PreTrainedModel, tokens: torch.Tensor, **inputs: Any) -> torch.Tensor:
    return model.base_model(input_ids=tokens, use_cache=False, **inputs).last_hidden_state


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal within the tolerance, relative to the largest value where that exceeds 1."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


# ---------------------------------------------------------------------------------------------------------------
# The leak matrix: change one token, see exactly which positions move
# ---------------------------------------------------------------------------------------------------------------


def movements(model: PreTrainedModel, tokens: torch.Tensor, inputs_of: Any) -> torch.Tensor:
    """[L, L]: how far position q moves when the token at k is changed, one forward for all k."""
    length = len(tokens)
    batch = tokens.repeat(length + 1, 1)  # the last row stays as it is
    index = torch.arange(length)
    batch[index, index] = 3 + (tokens + 100) % 297
    states = inputs_of(batch)
    assert torch.isfinite(states).all()
    return (states[:-1] - states[-1]).abs().amax(dim=-1).T


def assert_moves(moved: torch.Tensor, expected: torch.Tensor) -> None:
    """Exactly the expected positions move; "moved" is far above float32's noise, "unmoved" far below."""
    assert (moved[~expected] < 1e-5).all(), f"leak: {moved[~expected].max():.2g}"
    assert (moved[expected] > 1e-4).all(), f"deaf: {moved[expected].min():.2g}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@backends
@variants
def test_leak(variant: str, backend: str, padding: str, mode: str) -> None:
    pads, real = (0 if padding == "none" else 3), 8
    first = pads if padding == "left" else 0
    attention_mask = torch.zeros(real + pads, dtype=torch.long)
    attention_mask[first : first + real] = 1
    draw = torch.rand(real + pads, real + pads, generator=torch.Generator().manual_seed(5)) < ANNEALED.get(mode, 0)
    for layer in (0, 1):
        model = one_layer_attends(variant, layer)
        with patched(model, "causal" if mode == "causal" else "bidirectional", backend), torch.no_grad():

            def states(batch: torch.Tensor, model: PreTrainedModel = model) -> torch.Tensor:
                padded: Any = {"attention_mask": attention_mask.expand(len(batch), -1)}
                if mode in ANNEALED:
                    padded = annealed_inputs(model, ANNEALED[mode], draw=draw, **padded)
                return hidden_states(model, batch, **padded)

            moved = movements(model, random_tokens(real + pads), states)
        expected = visible(real + pads, mode.split("-")[0], layer_window(model, layer), draw)
        expected &= attention_mask.bool()  # padding moves nothing
        queries = slice(first, first + real)
        expected |= torch.eye(real + pads, dtype=torch.bool)
        assert_moves(moved[queries], expected[queries])


@pytest.mark.parametrize("mode", MODES)
@backends
@variants
def test_packed_leak(variant: str, backend: str, mode: str) -> None:
    tokens = random_tokens(sum(LENGTHS))
    longest = max(LENGTHS)
    draw = torch.rand(longest, longest, generator=torch.Generator().manual_seed(5)) < ANNEALED.get(mode, 0)
    for layer in (0, 1):
        model = one_layer_attends(variant, layer)
        with patched(model, "causal" if mode == "causal" else "bidirectional", backend), torch.no_grad():
            packed = packed_inputs(LENGTHS)
            if mode in ANNEALED:
                packed = annealed_inputs(model, ANNEALED[mode], lengths=LENGTHS, draw=draw)

            def states(batch: torch.Tensor, model: PreTrainedModel = model, packed: Any = packed) -> torch.Tensor:
                return torch.cat([hidden_states(model, row[None], **packed) for row in batch])

            moved = movements(model, tokens, states)
        window = layer_window(model, layer)
        texts = [visible(length, mode.split("-")[0], window, draw) for length in LENGTHS]
        assert_moves(moved, torch.block_diag(*texts).bool())


# ---------------------------------------------------------------------------------------------------------------
# Equalities
# ---------------------------------------------------------------------------------------------------------------


def run_with_gradients(model: PreTrainedModel, forward: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The hidden states that `forward` gives as one row of tokens, and the gradients of a fixed scalar of them."""
    model.zero_grad()
    states = forward()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (states * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return states.detach(), gradients


def assert_same_run(actual: tuple[Any, dict[str, Any]], expected: tuple[Any, dict[str, Any]]) -> None:
    assert_close(actual[0], expected[0])
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert_close(actual[1][name], gradient)


def apart(model: PreTrainedModel, tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """One forward per text, joined to the packed row."""
    return torch.cat([hidden_states(model, text) for text in tokens.split(list(lengths), dim=1)], dim=1)


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("backend", [*BACKENDS, "torch-flash"])
@variants
def test_packed_equals_separate_forwards(variant: str, backend: str, mode: str) -> None:
    if backend == "torch-flash" and variant == "gemma2":
        pytest.skip("torch's kernel has no soft-capping: test_torch_kernel_refuses_what_it_cannot_do")
    model = shared_model(variant).base_model
    tokens = random_tokens(1, sum(LENGTHS))
    dense = "eager" if variant == "gemma2" and backend != "sdpa" else "sdpa"  # sdpa drops Gemma-2's soft-capping
    with patched(model, mode, dense):
        expected = run_with_gradients(model, lambda: apart(model, tokens, LENGTHS))
    with patched(model, mode, backend):
        packed = run_with_gradients(model, lambda: hidden_states(model, tokens, **packed_inputs(LENGTHS)))
    assert_same_run(packed, expected)


@backends
@variants
def test_patch_of_the_models_own_mode_equals_the_untouched_model(variant: str, backend: str) -> None:
    model = shared_model(variant)
    dense = "eager" if variant == "gemma2" and backend != "sdpa" else "sdpa"
    tokens = random_tokens(1, sum(LENGTHS))
    implementation = model.config._attn_implementation
    model.set_attn_implementation(dense)
    untouched = run_with_gradients(model, lambda: apart(model, tokens, LENGTHS))
    model.set_attn_implementation(implementation)
    with patched(model, "bidirectional" if variant in BIDIRECTIONAL else "causal", backend):
        packed = run_with_gradients(model, lambda: hidden_states(model, tokens, **packed_inputs(LENGTHS)))
    assert_same_run(packed, untouched)


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("backend", [*BACKENDS, "torch-flash"])
@variants
def test_padded_equals_packed(variant: str, backend: str, padding: str, mode: str) -> None:
    if backend == "torch-flash" and variant == "gemma2":
        pytest.skip("torch's kernel has no soft-capping: test_torch_kernel_refuses_what_it_cannot_do")
    model = shared_model(variant).base_model
    tokens = random_tokens(1, sum(LENGTHS))
    longest = max(LENGTHS)
    columns = torch.arange(longest)
    sizes = torch.tensor(LENGTHS)[:, None]
    mask = columns < sizes if padding == "right" else columns >= longest - sizes
    batch = torch.full((len(LENGTHS), longest), 2)
    batch[mask] = tokens[0]
    inputs = {"attention_mask": mask.long(), "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with patched(model, mode, backend):
        packed = run_with_gradients(model, lambda: hidden_states(model, tokens, **packed_inputs(LENGTHS)))
        padded = run_with_gradients(model, lambda: hidden_states(model, batch, **inputs)[mask][None])
    assert_same_run(padded, packed)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@backends
@variants
def test_annealed_packed_equals_annealed_padded(variant: str, backend: str, ratio: float) -> None:
    """Texts of a packed row read the same draw as the rows of a padded batch; a [T, T] mask says the same."""
    model = shared_model(variant).base_model
    tokens = random_tokens(1, sum(LENGTHS))
    longest = max(LENGTHS)
    draw = torch.rand(longest, longest, generator=torch.Generator().manual_seed(2)) < ratio
    mask = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
    batch = torch.full((len(LENGTHS), longest), 2)
    batch[mask] = tokens[0]
    with patched(model, "bidirectional", backend):
        inputs = annealed_inputs(model, ratio, attention_mask=mask.long(), draw=draw)
        padded = run_with_gradients(model, lambda: hidden_states(model, batch, **inputs)[mask][None])
        inputs = annealed_inputs(model, ratio, lengths=LENGTHS, draw=draw)
        packed = run_with_gradients(model, lambda: hidden_states(model, tokens, **inputs))
        full = mask_inputs(model, annealed_mask(sum(LENGTHS), ratio, draw=draw, lengths=LENGTHS))
        inputs = {"position_ids": packed_inputs(LENGTHS)["position_ids"]} | full
        dense = run_with_gradients(model, lambda: hidden_states(model, tokens, **inputs))
        with_lengths = hidden_states(model, tokens, **packed_inputs(LENGTHS) | full).detach()
    assert_same_run(packed, padded)
    assert_same_run(dense, padded)
    assert_close(with_lengths, padded[0])


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("sliding_window", ["keep", "ignore"])
@variants
def test_backends_agree(variant: str, sliding_window: str, mode: str) -> None:
    family, overrides = VARIANTS[variant]
    if family == "gemma2":
        overrides = overrides | {"attn_logit_softcapping": None}  # sdpa cannot
    model = tiny_model(family, **overrides)
    tokens, mask = random_tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = mask[2, 7:] = 0
    outputs = []
    for backend in (*BACKENDS, "torch-flash"):
        with patched(model, mode, backend, sliding_window=sliding_window), torch.no_grad():
            outputs.append(hidden_states(model, tokens, attention_mask=mask)[mask.bool()])
    for output in outputs[1:]:
        assert_close(output, outputs[0])


@pytest.mark.parametrize("variant", WINDOWED)
@backends
def test_ignored_window_equals_no_window(variant: str, backend: str) -> None:
    """As if no layer had a window: texts of one token fewer than the window tell keep and ignore not apart."""
    model = shared_model(variant)
    tokens = random_tokens(1, 20)
    wide = copy.deepcopy(model)
    for config in {id(m.config): m.config for m in wide.modules() if isinstance(m, PreTrainedModel)}.values():
        config.sliding_window = 100
    for module in attention_patch._attention_modules(wide):
        if "sliding_window" in vars(module) and module.sliding_window is not None:
            module.sliding_window = 100
    for inputs in ({}, packed_inputs([20]), {"attention_mask": torch.ones(1, 20)}):
        with patched(model, "bidirectional", backend, sliding_window="ignore"), torch.no_grad():
            ignored = hidden_states(model, tokens, **inputs)
        with patched(model, "bidirectional", backend), torch.no_grad():
            kept = hidden_states(model, tokens, **inputs)
        with patched(wide, "bidirectional", backend), torch.no_grad():
            assert_close(ignored, hidden_states(wide, tokens, **inputs))
        assert (ignored - kept).abs().max() > 1e-2


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("variant", ["llama", "mistral", "gemma3", "gpt2"])
def test_packed_row_builds_no_square_mask(variant: str, mode: str, backend: str) -> None:
    """No tensor of a forward and backward over T tokens has T x T elements."""
    lengths = [11, 11, 40, 3] * 6
    total = sum(lengths)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return result

    model = shared_model(variant).base_model
    with patched(model, mode, backend), Largest() as largest:
        hidden_states(model, random_tokens(1, total), **packed_inputs(lengths)).sum().backward()
    model.zero_grad()
    assert 0 < largest.elements < total * total // 2


# ---------------------------------------------------------------------------------------------------------------
# What flash_attention_2 is given
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["flash", "torch-flash"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("variant", ["llama", "mistral", "gemma3", "gpt2"])
def test_flash_is_given_the_texts_and_the_window(variant: str, mode: str, backend: str) -> None:
    model = shared_model(variant)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = mask[2, 7:] = 0
    with patched(model, mode, backend) as reference, torch.no_grad():
        assert reference is not None
        hidden_states(model, random_tokens(1, sum(LENGTHS)), **packed_inputs(LENGTHS))
        packed, reference.calls = reference.calls, []
        hidden_states(model, random_tokens(3, 9), attention_mask=mask)
        padded, reference.calls = reference.calls, []
        hidden_states(model, random_tokens(3, 9))
        full = reference.calls
    causal = mode == "causal"
    assert len(packed) == len(padded) == len(full) == 2
    for layer, calls in enumerate(zip(packed, padded, full, strict=True)):
        window = layer_window(model, layer)
        behind = -1 if window is None else window - causal
        for call in calls:
            assert call.causal == causal
            assert call.window[0] == behind
            assert causal or call.window[1] == behind
        assert calls[0].ends == [0, 7, 9, 11, 12, 21]
        assert calls[1].ends == [0, 9, 14, 21]
        assert calls[0].longest == calls[1].longest == 9


def test_flash_runs_a_mask_through_sdpa_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = shared_model("llama")
    tokens, ones = random_tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    attention_patch.logger.warning_once.__func__.cache_clear()
    with patched(model, "bidirectional", "flash") as reference, torch.no_grad():
        assert reference is not None
        for _ in range(2):
            hidden_states(model, tokens, **annealed_inputs(model, 0.5, attention_mask=ones))
        assert not reference.calls
        hidden_states(model, tokens, **annealed_inputs(model, 1, attention_mask=ones))
        assert len(reference.calls) == 2
    assert len([record for record in caplog.records if "takes no attention mask" in record.message]) == 1


@pytest.mark.parametrize("unable", [{"attn_logit_softcapping": 5.0}, {"attention_dropout": 0.1}])
def test_torch_kernel_refuses_what_it_cannot_do(unable: dict[str, Any]) -> None:
    model = tiny_model("gemma2", **{"attn_logit_softcapping": None} | unable).train()
    with patched(model, "bidirectional", "torch-flash"), pytest.raises(ValueError, match="install flash-attn"):
        hidden_states(model, random_tokens(1, 4))


@pytest.mark.parametrize("backend", ["eager", "flash"])
def test_soft_capping_is_kept(backend: str) -> None:
    """Gemma-2 with a cap low enough to matter: eager, flash and the mask's way out of flash agree."""
    model = tiny_model("gemma2", attn_logit_softcapping=0.5)
    tokens, ones = random_tokens(1, 9), torch.ones(1, 9, dtype=torch.long)
    everything = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        model.config.is_causal = False
        expected = hidden_states(model, tokens)
        with patched(model, "bidirectional", backend):
            assert_close(hidden_states(model, tokens, attention_mask=ones), expected)
            assert_close(hidden_states(model, tokens, **packed_inputs([9])), expected)
            assert_close(hidden_states(model, tokens, **mask_inputs(model, everything)), expected)
        with patched(model, "bidirectional", "sdpa"):
            assert (hidden_states(model, tokens) - expected).abs().max() > 1e-2


# ---------------------------------------------------------------------------------------------------------------
# Masks
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@variants
def test_boolean_mask_given_directly(variant: str, backend: str) -> None:
    """eager adds masks to scores, where a boolean one would be silently wrong."""
    model = shared_model(variant)
    tokens = random_tokens(1, 3)  # within every window
    allowed = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])[None, None]
    with patched(model, "bidirectional", backend), torch.no_grad():
        direct = hidden_states(model, tokens, attention_mask=allowed)
        assert_close(direct, hidden_states(model, tokens, **mask_inputs(model, allowed)))
        assert (direct - hidden_states(model, tokens)).abs().max() > 1e-2


@backends
def test_a_query_that_sees_nothing_stays_finite(backend: str) -> None:
    model = shared_model("mistral").base_model
    mask = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1], [1] * 8])
    with patched(model, "bidirectional", backend):
        inputs = annealed_inputs(model, 0.2, attention_mask=mask)
        seen = inputs["attention_mask"]
        seen = seen == 0 if seen.is_floating_point() else seen
        assert seen[0, 0, 0].nonzero().tolist() == [[0]]  # itself, although it is padding
        states = hidden_states(model, random_tokens(2, 8), **inputs)
        states[mask.bool()].sum().backward()
    assert torch.isfinite(states).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_annealed_mask_is_drawn_from_its_generator() -> None:
    def mask(seed: int) -> torch.Tensor:
        return annealed_mask(40, 0.3, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))
    assert torch.equal(torch.get_rng_state(), before)
    above = mask(1)[0, 0][torch.ones(40, 40).triu(1).bool()].float().mean()
    assert 0.25 < above < 0.35  # 780 draws: 3 standard errors


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: annealed_mask(3, 1.5), "`ratio`"),
        (lambda: annealed_mask(3, 0.5, lengths=[1, 1]), "`lengths` must add up to the row's 3 tokens, got 2"),
        (lambda: annealed_mask(3, 0.5, draw=torch.ones(2, 2)), "`draw`"),
        (lambda: annealing_ratio(0, 0), "`anneal_steps`"),
        (lambda: packed_inputs([2, 0]), "`lengths`"),
        (lambda: packed_inputs([]), "`lengths`"),
        (lambda: mask_inputs(shared_model("llama"), torch.ones(2, 2, dtype=torch.bool)), "`allowed`"),
        (lambda: mask_inputs(shared_model("llama"), torch.ones(1, 1, 2, 2)), "`allowed`"),
        (lambda: annealed_inputs(shared_model("llama"), 0.5, lengths=[2]), "`mode` bidirectional"),
        (lambda: patch_attention(shared_model("llama"), "both"), "`mode` must be one of bidirectional, causal"),  # type: ignore[arg-type]
        (lambda: patch_attention(shared_model("llama"), sliding_window="drop"), "`sliding_window`"),  # type: ignore[arg-type]
        (lambda: patch_attention(shared_model("llama"), backend="flex"), "`backend` must be one of"),  # type: ignore[arg-type]
        (lambda: patch_attention(nn.Linear(2, 2)), "no transformers model"),
    ],
)
def test_wrong_options_are_named(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


# ---------------------------------------------------------------------------------------------------------------
# The packed row and its lengths
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "torch-flash"])
def test_unannounced_packing_is_refused(backend: str, mode: str) -> None:
    model = shared_model("llama").base_model
    positions = packed_inputs(LENGTHS)["position_ids"]
    with patched(model, mode, backend), torch.no_grad():
        if mode == "bidirectional" or backend == "torch-flash":
            with pytest.raises(ValueError, match=r"packed_inputs\(lengths\)"):
                hidden_states(model, random_tokens(1, sum(LENGTHS)), position_ids=positions)
        else:  # transformers' causal masks do read the positions
            tokens = random_tokens(1, sum(LENGTHS))
            assert_close(hidden_states(model, tokens, position_ids=positions), apart(model, tokens, LENGTHS))


def test_lengths_that_do_not_cover_the_row_are_refused() -> None:
    model = shared_model("llama")
    with patch_attention(model), pytest.raises(ValueError, match="counts 5 tokens but the batch is 1 x 6"):
        hidden_states(model, random_tokens(1, 6), **packed_inputs([2, 3]) | {"position_ids": torch.arange(6)[None]})


def test_lengths_follow_the_tensor() -> None:
    """Lengths come from `cu_seq_lens` itself, also when it was made elsewhere or changed in place."""
    model = shared_model("llama").base_model
    tokens = random_tokens(1, 9)
    with patch_attention(model), torch.no_grad():
        inputs = packed_inputs([4, 5])
        ends = inputs["cu_seq_lens_q"]
        first = hidden_states(model, tokens, **inputs)
        other = {"position_ids": packed_inputs([6, 3])["position_ids"]}
        ends[1] = 6
        changed = hidden_states(model, tokens, **inputs | other)
        assert_close(changed, apart(model, tokens, [6, 3]))
        inputs |= other | dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), torch.tensor([0, 6, 9]))
        assert_close(hidden_states(model, tokens, **inputs), changed)
        assert (changed - first).abs().max() > 1e-2


def test_packed_inputs_are_refused_by_an_unpatched_model() -> None:
    model = shared_model("llama")
    with pytest.raises(RuntimeError):
        hidden_states(model, random_tokens(1, sum(LENGTHS)), **packed_inputs(LENGTHS))


# ---------------------------------------------------------------------------------------------------------------
# Training: PEFT, gradient checkpointing, compile, DDP
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("kind", ["packed", "annealed", "annealed-packed"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["llama", "gemma3", "gpt2"])
def test_gradient_checkpointing(variant: str, backend: str, kind: str, reentrant: bool) -> None:
    model = copy.deepcopy(shared_model(variant).base_model).train()
    model.enable_input_require_grads()
    lengths = LENGTHS if "packed" in kind else [sum(LENGTHS)]
    draw = torch.rand(max(lengths), max(lengths), generator=torch.Generator().manual_seed(3)) < 0.3
    tokens = random_tokens(1, sum(LENGTHS))
    with patched(model, "bidirectional", backend):
        if kind == "packed":
            inputs = packed_inputs(lengths)
        elif kind == "annealed-packed":
            inputs = annealed_inputs(model, 0.3, lengths=lengths, draw=draw)
        else:
            inputs = annealed_inputs(model, 0.3, attention_mask=torch.ones_like(tokens), draw=draw)
        plain = run_with_gradients(model, lambda: hidden_states(model, tokens, **inputs))
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        checkpointed = run_with_gradients(model, lambda: hidden_states(model, tokens, **inputs))
    assert_same_run(checkpointed, plain)


@pytest.mark.parametrize("variant", ["llama", "gemma3", "gpt2"])
def test_under_peft(variant: str) -> None:
    """Patched around or inside the adapter: same numbers, and only the adapter has gradients."""
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(shared_model(variant))
    tokens = random_tokens(1, sum(LENGTHS))
    targets = ["c_attn"] if variant == "gpt2" else ["q_proj", "v_proj"]
    wrapped: Any = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    with patch_attention(wrapped) as patch:
        assert patch.model is model
        row = wrapped(input_ids=tokens, **packed_inputs(LENGTHS)).logits
        texts = [wrapped(input_ids=text).logits for text in tokens.split(LENGTHS, dim=1)]
        assert_close(row, torch.cat(texts, dim=1))
        row.sum().backward()
        causal = wrapped(input_ids=tokens).logits
    assert {name for name, p in wrapped.named_parameters() if p.grad is not None} == {
        name for name, _ in wrapped.named_parameters() if "lora" in name
    }
    assert (wrapped(input_ids=tokens).logits - causal).abs().max() > 1e-2  # restored


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_ddp(backend: str, tmp_path: Path) -> None:
    model = copy.deepcopy(shared_model("gemma3"))
    tokens = random_tokens(1, sum(LENGTHS))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with patched(model, "bidirectional", backend):
            expected = run_with_gradients(model, lambda: model(tokens, **packed_inputs(LENGTHS)).logits)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with patched(wrapped, "bidirectional", backend):
            actual = run_with_gradients(model, lambda: wrapped(tokens, **packed_inputs(LENGTHS)).logits)
    finally:
        torch.distributed.destroy_process_group()
    assert_same_run(actual, expected)


def test_compiled() -> None:
    """Dynamo traces the patched functions; without a code generator, so that the test needs no compiler."""
    model = tiny_model("llama", num_hidden_layers=1).base_model
    tokens, mask = random_tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    with patch_attention(model), torch.no_grad():
        compiled = torch.compile(model, backend="eager")
        for inputs in ({"attention_mask": mask}, annealed_inputs(model, 0.5, attention_mask=mask)):
            assert_close(compiled(tokens, **inputs)[0], model(tokens, **inputs)[0])
        row = random_tokens(1, sum(LENGTHS))
        inputs = packed_inputs(LENGTHS)
        assert_close(compiled(row, **inputs)[0], model(row, **inputs)[0])


# ---------------------------------------------------------------------------------------------------------------
# Undone, replaced, copied, saved
# ---------------------------------------------------------------------------------------------------------------


def fingerprint(model: PreTrainedModel) -> Any:
    """Everything a patch touches."""
    flags = [{k: v for k, v in vars(m).items() if isinstance(v, (bool, int, type(None)))} for m in model.modules()]
    return flags, dict(vars(model.config)), list(vars(model))


@variants
def test_restored_model_is_the_same(variant: str) -> None:
    model = shared_model(variant)
    tokens, mask = random_tokens(2, 9), torch.ones(2, 9)
    mask[0, :3] = 0
    before = copy.deepcopy(fingerprint(model))
    expected = model(tokens, attention_mask=mask).logits
    modes = ("bidirectional", "causal")[:: -1 if variant in BIDIRECTIONAL else 1]
    for backend in ("eager", "sdpa"):
        patch = patch_attention(model, modes[0], backend=backend, sliding_window="ignore")  # type: ignore[arg-type]
        assert (model(tokens, attention_mask=mask).logits - expected).abs().max() > 1e-2
        patch_attention(model, modes[1], backend="sdpa").restore()  # type: ignore[arg-type]
        assert fingerprint(model) == before
        patch.restore()  # replaced: nothing to undo
        assert fingerprint(model) == before
        assert torch.equal(model(tokens, attention_mask=mask).logits, expected)


def test_a_second_patch_replaces_the_first() -> None:
    model = shared_model("mistral")
    tokens = random_tokens(1, 9)
    with torch.no_grad():
        causal = hidden_states(model, tokens)
        with patch_attention(model, sliding_window="ignore"):
            open_ = hidden_states(model, tokens)
            with patch_attention(model, "causal") as second:
                assert second.mode == "causal"
                assert_close(hidden_states(model, tokens), causal)
        assert torch.equal(hidden_states(model, tokens), causal)
        with patch_attention(model, sliding_window="ignore"):
            assert torch.equal(hidden_states(model, tokens), open_)


def test_a_failing_block_still_restores() -> None:
    model = shared_model("llama")
    before = copy.deepcopy(fingerprint(model))
    with pytest.raises(KeyError), patch_attention(model):
        raise KeyError
    assert fingerprint(model) == before


def test_a_copy_of_a_patched_model_is_patched_on_its_own() -> None:
    model = shared_model("gemma3")
    tokens = random_tokens(1, 9)
    with patch_attention(model), torch.no_grad():
        copied = copy.deepcopy(model)
        expected = hidden_states(model, tokens)
    with torch.no_grad():
        causal = hidden_states(model, tokens)
        assert torch.equal(hidden_states(copied, tokens), expected)
        patch_attention(copied).restore()
        assert torch.equal(hidden_states(copied, tokens), causal)


@pytest.mark.parametrize("sliding_window", ["keep", "ignore"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@variants
def test_saved_model_loads_bidirectional(
    variant: str, implementation: str, sliding_window: str, tmp_path: Path
) -> None:
    """Without the patch, transformers gives what the patched model gave, windows included."""
    model = shared_model(variant)
    tokens, mask = random_tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    with patch_attention(model, backend=implementation, sliding_window=sliding_window), torch.no_grad():  # type: ignore[arg-type]
        expected = hidden_states(model, tokens, attention_mask=mask)[mask.bool()]
        model.save_pretrained(tmp_path)
    assert "patched" not in (tmp_path / "config.json").read_text()
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation)
    assert loaded.config.is_causal is False
    with torch.no_grad():
        assert_close(hidden_states(loaded, tokens, attention_mask=mask)[mask.bool()], expected)
        with patch_attention(loaded, backend=implementation, sliding_window=sliding_window):  # type: ignore[arg-type]
            row = hidden_states(loaded, tokens[:1], **packed_inputs([9]))
        assert_close(row[0], expected[:9])
        with patch_attention(loaded, "causal"):
            assert loaded.config.is_causal is True
        assert loaded.config.is_causal is False


def test_a_model_made_from_a_patched_config_is_bidirectional() -> None:
    model = shared_model("llama")
    with patch_attention(model), torch.no_grad():
        other = type(model)._from_config(model.config)
        other.load_state_dict(model.state_dict())
        tokens = random_tokens(1, 6)
        assert_close(hidden_states(other, tokens), hidden_states(model, tokens))


# ---------------------------------------------------------------------------------------------------------------
# Encoders, and models that are refused
# ---------------------------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def model_of_type(model_type: str, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES | overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model.eval()


GEMMA3 = {"use_bidirectional_attention": True, "sliding_window": 6, "head_dim": 8, "query_pre_attn_scalar": 8,
          "num_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
MODERNBERT = {"cls_token_id": 0, "sep_token_id": 1, "local_attention": 6, "global_attn_every_n_layers": 2}


@pytest.mark.parametrize(
    ("model_type", "overrides"), [("bert", {}), ("modernbert", MODERNBERT), ("gemma3_text", GEMMA3)]
)
@pytest.mark.parametrize("backend", [*BACKENDS, "torch-flash"])
def test_encoders_stay_what_they_are_and_pack(model_type: str, overrides: dict[str, Any], backend: str) -> None:
    model = model_of_type(model_type, **overrides)
    tokens, mask = random_tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, 7:] = 0
    row = random_tokens(1, sum(LENGTHS))
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        expected = model(tokens, attention_mask=mask)[0][mask.bool()]
        texts = torch.cat([model(text)[0] for text in row.split(LENGTHS, dim=1)], dim=1)
        with patched(model, "bidirectional", backend):
            assert_close(model(tokens, attention_mask=mask)[0][mask.bool()], expected)
            assert_close(model(row, **packed_inputs(LENGTHS))[0], texts)
        with pytest.raises(ValueError, match="is an encoder"):
            patch_attention(model, "causal")


OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "olmo2": {},
    "cohere2": {},
    "phi": {},
    "starcoder2": {},
    "granite": {},
    "gpt_bigcode": {},
    "electra": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "gpt_oss": {"num_local_experts": 4, "num_key_value_heads": 2, "head_dim": 8},
    "eurobert": {"num_key_value_heads": 2},
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures(model_type: str, backend: str) -> None:
    """No class per architecture: what goes through the shared functions is served without being known here."""
    model = model_of_type(model_type, max_position_embeddings=64, **OTHERS[model_type])
    row = random_tokens(1, sum(LENGTHS))
    if model_type == "gpt_oss" and backend == "sdpa":
        with pytest.raises(ValueError, match="cannot attend through sdpa"):
            patch_attention(model, backend="sdpa")
        return
    with patched(model, "bidirectional", backend), torch.no_grad():
        assert_close(model(row, **packed_inputs(LENGTHS))[0], apart(model, row, LENGTHS))
        moved = movements(model, row[0, :5], lambda batch: hidden_states(model, batch))
    assert (moved > 1e-4).all()


def test_an_architecture_that_drops_the_lengths_cannot_pack() -> None:
    """StableLM's layers pass no keyword arguments on: bidirectional yes, packed no."""
    model = model_of_type("stablelm", num_key_value_heads=2)
    with patch_attention(model), torch.no_grad():
        moved = movements(model, random_tokens(5), lambda batch: hidden_states(model, batch))
        assert (moved > 1e-4).all()
        with pytest.raises(ValueError, match="without its lengths"):
            hidden_states(model, random_tokens(1, sum(LENGTHS)), **packed_inputs(LENGTHS))


class OwnAttention(nn.Module):
    """As remote code does: the scores, and what is causal about them, are computed on the spot."""

    is_causal = True

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        scores = torch.matmul(states, states.transpose(-1, -2))
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return self.mix(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ states)


class OwnModel(PreTrainedModel):
    config_class = AutoConfig.for_model("llama").__class__

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(8, 4)
        self.attention = OwnAttention()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.attention(self.embed(input_ids))


def llama_with_a_convolution() -> PreTrainedModel:
    model = copy.deepcopy(shared_model("llama"))
    model.model.layers[0].short = nn.Conv1d(4, 4, 3)
    return model


def refused_models() -> dict[str, tuple[Any, str]]:
    conv = {"layer_types": ["full_attention", "conv"], "num_key_value_heads": 2}
    hybrid = {"num_key_value_heads": 2, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    text = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
    both = {"vision_config": vision, "text_config": text, "mm_tokens_per_image": 4}
    bart = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
    return {
        "own-attention": (lambda: OwnModel(AutoConfig.for_model("llama", **SIZES)), "computes its attention itself"),
        "bloom": (lambda: model_of_type("bloom", n_layer=2, n_head=4), "computes its attention itself"),
        "deberta-v2": (lambda: model_of_type("deberta-v2"), "computes its attention itself"),
        "conv-layers": (lambda: model_of_type("lfm2", **conv), "mixes tokens by other means"),
        "convolution": (llama_with_a_convolution, "mixes tokens by other means"),
        "state-space": (lambda: model_of_type("falcon_h1", **hybrid), "mixes tokens by other means"),
        "chunks": (
            lambda: model_of_type("llama4_text", num_key_value_heads=2, head_dim=8),
            "mixes tokens by other means",
        ),
        "cross-attention": (lambda: model_of_type("gpt2", add_cross_attention=True), "mixes tokens by other means"),
        "text-and-image": (lambda: model_of_type("gemma3", **both), "reads more than text"),
        "encoder-decoder": (lambda: model_of_type("bart", **bart), "is an encoder-decoder"),
    }


@pytest.mark.parametrize("name", refused_models())
def test_models_that_cannot_be_patched_are_refused(name: str) -> None:
    build, sentence = refused_models()[name]
    model = build()
    before = copy.deepcopy(dict(vars(model.config)))
    with pytest.raises(ValueError, match=sentence):
        patch_attention(model)
    assert vars(model.config) == before


def test_own_masks_are_refused() -> None:
    """The interface for attention but masks of its own, as older remote code has: it would stay causal."""
    model = copy.deepcopy(shared_model("llama").base_model)

    def forward(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    class OwnMasks(type(model)):  # type: ignore[misc]
        pass

    OwnMasks.forward = type(forward)(forward.__code__, {})  # type: ignore[method-assign]
    model.__class__ = OwnMasks
    with pytest.raises(ValueError, match="computes its attention masks itself"):
        patch_attention(model)


def test_a_causal_call_of_a_bidirectional_model_is_refused() -> None:
    model = shared_model("llama").base_model
    with patch_attention(model), pytest.raises(ValueError, match="`is_causal=True`"):
        model(random_tokens(1, 4), is_causal=True)


def test_backends_that_cannot_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model("llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        patch_attention(model, backend="flash_attention_2")
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    with pytest.raises(ValueError, match="cannot attend through sdpa"):
        patch_attention(model, backend="sdpa")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(ValueError, match="attends through flex_attention: set `backend`"):
        patch_attention(model)


# ---------------------------------------------------------------------------------------------------------------
# The same on real kernels
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@variants
def test_flash_on_a_gpu(variant: str, mode: str) -> None:
    """Packed and padded on the flash kernel at hand, against sdpa in the same 16 bits."""
    if variant == "gemma2" and not attention_patch.is_flash_attn_2_available():
        pytest.skip("torch's kernel has no soft-capping")
    family, overrides = VARIANTS[variant]
    model = tiny_model(family, **overrides).base_model.to("cuda", torch.bfloat16)
    tokens = random_tokens(1, sum(LENGTHS)).cuda()
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).cuda()
    batch = torch.full(mask.shape, 2, device="cuda")
    batch[mask] = tokens[0]

    def states() -> tuple[torch.Tensor, torch.Tensor]:
        packed = hidden_states(model, tokens, **packed_inputs(LENGTHS, "cuda"))
        padded = hidden_states(model, batch, attention_mask=mask.long())[mask][None]
        return packed, padded

    with torch.no_grad(), patch_attention(model, mode, backend="sdpa"):
        expected = states()[0]
    with patch_attention(model, mode, backend="flash_attention_2"):
        packed, padded = states()
        packed.sum().backward()
    assert (packed - expected).abs().mean() < 0.02
    assert (padded - expected).abs().mean() < 0.02
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
