"""Bidirectional, annealed and packed attention for the decoders of transformers, without a class per architecture.

One file that needs only torch and transformers:

    with patch_attention(model, "bidirectional"):                 # padded batches: call the model as ever
        model(input_ids=ids, attention_mask=padding)
        model(input_ids=row, **packed_inputs(lengths))            # one row of texts, none sees another
        model(input_ids=ids, **annealed_inputs(model, ratio, attention_mask=padding))
        model(input_ids=ids, **mask_inputs(model, allowed))       # any boolean mask [1 or B, 1, L, L]

Every architecture whose attention goes through transformers' `AttentionInterface` and whose masks come from the shared
mask functions is served, on eager, sdpa and flash_attention_2; any other is refused, never left silently causal.
Hybrids, which mix tokens by recurrence or convolution as well, are served causally.
How it works, what each family does and the limits: docs/attention.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, flash_attention_mask, sdpa_mask
from transformers.modeling_flash_attention_utils import _flash_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import AttentionInterface
from transformers.utils import is_flash_attn_2_available, logging
from transformers.utils.import_utils import is_torch_greater_or_equal


logger = logging.get_logger(__name__)

Mode = Literal["bidirectional", "causal"]
SlidingWindow = Literal["keep", "ignore"]
Backend = Literal["eager", "sdpa", "flash_attention_2"]

BACKENDS = ("eager", "sdpa", "flash_attention_2")
_PREFIX = "patched_"  # of the implementations registered below
_INTERFACE = "ALL_ATTENTION_FUNCTIONS"  # the name under which every architecture imports it
_MASK_BUILDERS = "transformers.masking_utils"

# Model types whose layers mix tokens by recurrence or convolution instead, and are told the lengths of a packed row.
# They read forward only. (Nemotron-H is not among them: without kernels, transformers 5.5 looks ahead beyond a chunk.)
HYBRIDS = (
    "bamba",
    "granitemoehybrid",
    "jamba",
    "lfm2",
    "lfm2_moe",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
)


# ------------------------------ what a forward is given: packed rows and masks ------------------------------

# Lengths of the packed texts as Python numbers, so that no layer waits for the device to learn them.
_known_lengths: Any = WeakTensorKeyDictionary()


def packed_inputs(lengths: Sequence[int], device: torch.device | str | None = None) -> dict[str, Any]:
    """The keyword arguments that tell a patched model that its one row `[1, T]` holds texts of these lengths.

    They travel through the layers as transformers' `FlashAttentionKwargs` do. The mask without a single row says
    "ask the lengths": it keeps the mask functions from building a T x T mask, and no unpatched model accepts it.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"`lengths` must name at least one text and no empty one, got {list(lengths)}.")
    sizes = torch.tensor(lengths, dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.inference_mode(False):  # inference tensors carry no version, which `_text_lengths` relies on
        ends = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0)).to(device)
    _known_lengths[ends] = (ends._version, list(lengths))
    return {
        "position_ids": positions[None].to(device),  # [1, T], from 0 in every text
        "attention_mask": torch.empty(1, 1, 0, len(positions), dtype=torch.bool, device=device),
        "cu_seq_lens_q": ends,  # [texts + 1]
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _text_lengths(ends: torch.Tensor) -> list[int]:
    """The lengths behind `cu_seq_lens`; asks the device only for a tensor that was not seen before."""
    if ends.is_inference():
        return ends.diff().tolist()
    known = _known_lengths.get(ends)
    if known is None or known[0] != ends._version:
        known = (ends._version, ends.diff().tolist())
        _known_lengths[ends] = known
    return known[1]


def annealing_ratio(global_step: int, anneal_steps: int) -> float:
    """How far attention has opened at this optimizer step: never 0, and 1 from step `anneal_steps - 1` on."""
    if anneal_steps < 1:
        raise ValueError(f"`anneal_steps` must be at least 1 (bidirectional from the first step), got {anneal_steps}.")
    return min(1.0, (global_step + 1) / anneal_steps)


def annealed_mask(
    length: int,
    ratio: float,
    *,
    generator: torch.Generator | None = None,
    draw: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    lengths: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Causal OR Bernoulli(`ratio`): leads from causal to bidirectional attention (DiffuLLaMA, arXiv 2410.17891).

    Returns a boolean mask [1 or B, 1, length, length], True = may attend. One draw (`draw`, or one from `generator`)
    serves all rows and heads. With `attention_mask` [B, length] padding is no key. With `lengths` the mask is that of
    a packed row: block-diagonal, every text reads the draw from its own start, as the rows of a padded batch do.
    `packed_inputs` do not need such a [T, T] mask: beside them, `annealed_mask(max(lengths), ratio)` serves each text.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"`ratio` must lie between 0 (causal) and 1 (bidirectional), got {ratio}.")
    if lengths is not None and sum(lengths) != length:
        raise ValueError(f"`lengths` must add up to the row's {length} tokens, got {sum(lengths)}.")
    size = length if lengths is None else max(lengths)
    if draw is None:
        origin = device if generator is None else generator.device
        draw = torch.rand(size, size, generator=generator, device=origin) < ratio
    elif draw.shape != (size, size):
        raise ValueError(f"`draw` must have the shape [{size}, {size}] of the longest text, got {list(draw.shape)}.")
    draw = draw.to(device=device, dtype=torch.bool)
    allowed = draw | torch.ones_like(draw).tril()
    if lengths is not None:
        sizes = torch.tensor(lengths, device=draw.device)
        texts = torch.arange(len(lengths), device=draw.device).repeat_interleave(sizes)
        positions = torch.cat([torch.arange(n, device=draw.device) for n in lengths])
        allowed = allowed[positions[:, None], positions] & (texts[:, None] == texts)
    allowed = allowed[None, None]
    if attention_mask is not None:
        allowed = allowed & attention_mask.to(device=draw.device, dtype=torch.bool)[:, None, None, :]
    return allowed


def mask_inputs(model: nn.Module, allowed: torch.Tensor) -> dict[str, Any]:
    """The `attention_mask` argument that gives a boolean mask [1 or B, 1, L, L] to this model and its back-end.

    Layers with a sliding window see `allowed` within their window. A query that may attend to nothing (padding)
    attends to itself, so that no row of a softmax is empty. eager adds its mask to the scores, so it gets numbers;
    the others get booleans. flash_attention_2 takes no mask: a forward with one runs through sdpa.

    Beside `packed_inputs` the mask may be [1, 1, M, M] with M the longest text: each text reads its upper left corner.
    """
    if allowed.dim() != 4 or allowed.dtype != torch.bool:
        shape = list(allowed.shape)
        raise ValueError(f"`allowed` must be a boolean mask [batch, 1, length, length], got {allowed.dtype} {shape}.")
    inner = _transformers_model(model)
    config = inner.config
    windows = [module.sliding_window for module in _attention_modules(inner) if vars(module).get("sliding_window")]
    window = windows[0] if windows else getattr(config, "sliding_window", None)
    reach = None if window is None else _window_reach(config, window, None)
    additive = config._attn_implementation in ("eager", _PREFIX + "eager")

    def finished(mask: torch.Tensor) -> torch.Tensor:
        itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        mask = mask | (itself & ~mask.any(dim=-1, keepdim=True))
        return _additive(mask, inner.dtype) if additive else mask

    everywhere = finished(allowed)
    if reach is None or reach >= allowed.shape[-1] - 1:
        return {"attention_mask": everywhere}
    windowed = finished(allowed & _band(allowed.shape[-1], False, reach, allowed.device))
    layer_types = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if layer_types == {"full_attention", "sliding_attention"}:
        return {"attention_mask": {"full_attention": everywhere, "sliding_attention": windowed}}
    return {"attention_mask": windowed if layer_types == {"sliding_attention"} else everywhere}


def annealed_inputs(
    model: nn.Module,
    ratio: float,
    *,
    attention_mask: torch.Tensor | None = None,
    lengths: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    draw: torch.Tensor | None = None,
) -> dict[str, Any]:
    """The forward's keyword arguments for one annealed step of a bidirectionally patched model.

    Either for a padded batch with `attention_mask` [B, L] or for a packed row with `lengths`. At ratio 1 there is no
    mask to give, so the forward runs as fast as the back-end can, on flash_attention_2 too.
    """
    inner = _transformers_model(model)
    if getattr(_attention_modules(inner)[0], "is_causal", True):
        raise ValueError("Annealing ends bidirectional: patch the model with `mode` bidirectional first.")
    device = inner.device
    if lengths is not None and attention_mask is None:
        inputs, longest = packed_inputs(lengths, device), max(lengths)
    elif attention_mask is not None and lengths is None:
        inputs, longest = {"attention_mask": attention_mask}, attention_mask.shape[-1]
    else:
        raise ValueError("Name either the `attention_mask` of a padded batch or the `lengths` of a packed row.")
    if ratio == 1:
        return inputs
    options: dict[str, Any] = {"generator": generator, "draw": draw, "attention_mask": attention_mask}
    return inputs | mask_inputs(model, annealed_mask(longest, ratio, device=device, **options))


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _band(length: int, causal: bool, reach: int | None, device: torch.device) -> torch.Tensor:
    """[length, length]: keys at most `reach` positions away, and none that lie ahead if `causal`."""
    positions = torch.arange(length, device=device)
    behind = positions[:, None] - positions  # how far the key lies behind the query
    allowed = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    return allowed if reach is None else allowed & (behind.abs() <= reach)


def _window_reach(config: Any, window: int, is_causal: bool | None) -> int:
    """How far a window of this size reaches.

    A causal window of w holds the token itself and w - 1 before it, and encoders count two-sided windows the same way.
    When `is_causal: false` turns a decoder around, the masks of transformers reach w to both sides; so do we on every
    back-end, because that is how a saved model attends wherever transformers loads it.
    """
    turned = is_causal is False or getattr(config, "is_causal", None) is False
    return window if turned else window - 1


# ----------------------------- attention functions: transformers calls one per layer -----------------------------

States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # query, key, value
Attended = tuple[torch.Tensor, torch.Tensor | None]  # output [B, L, heads, head size], weights where there are any


def _sdpa(module: nn.Module, states: States, mask: torch.Tensor | None, causal: bool, **options: Any) -> Attended:
    if options.pop("softcap", None) is not None:  # newer versions of transformers refuse it
        logger.warning_once(
            f"{type(module).__name__} caps its attention scores, which sdpa cannot do (transformers leaves the cap out"
            " as well): eager and flash-attn can."
        )
    return sdpa_attention_forward(module, *states, mask, is_causal=causal, **options)


def _eager(module: nn.Module, states: States, mask: torch.Tensor | None, causal: bool, **options: Any) -> Attended:
    """The architecture's own eager function, so that its scaling, soft-capping and sinks stay what they are.

    It knows no flag: what is causal must be in the mask.
    """
    if mask is not None and mask.dtype == torch.bool:
        mask = _additive(mask, states[0].dtype)  # added to the scores, a boolean would be silently wrong
    return _own_eager_function(type(module))(module, *states, mask, **options)


@torch.compiler.disable  # its calls follow the lengths, and a program for each set of lengths is no use
def _attend_per_text(
    dense: Callable[..., Attended],
    module: nn.Module,
    states: States,  # each [1, heads, T, head size]
    mask: torch.Tensor | None,  # [1, 1, M, M] with M the longest text, or [1, 1, T, T]
    ends: torch.Tensor,
    causal: bool,
    reach: int | None,
    between_graphs: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Attention inside each text of a packed row: one dense call per run of texts of equal length.

    `between_graphs`: a compiled program goes on with the result, [1, T, heads, head size]. A view would bring the
    shape of the tensor below it, and the compiler would start anew for each such shape.
    """
    lengths, total = _text_lengths(ends), states[0].shape[2]
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    # `split`, not slices: its backward writes one gradient for the whole row instead of adding up one per slice
    sizes = [length * count for length, count in runs]
    pieces = zip(*(s.split(sizes, dim=2) for s in states), strict=True) if len(runs) > 1 else [states]
    outputs, start = [], 0
    for (length, count), run in zip(runs, pieces, strict=True):
        # [1, heads, count * length, head size] -> [count, heads, length, head size]
        texts = tuple(piece.unflatten(2, (count, length))[0].transpose(0, 1) for piece in run)
        allowed = None
        if mask is not None and mask.shape[-1] == total:
            starts = range(start, start + length * count, length)
            allowed = torch.cat([mask[..., at : at + length, at : at + length] for at in starts])
        elif mask is not None:
            allowed = mask[..., :length, :length]
        elif (reach is not None and length > reach + 1) or (causal and dense is _eager):
            allowed = _band(length, causal, reach, texts[0].device)[None, None]
        output, _ = dense(module, texts, allowed, causal, **options)  # [count, length, heads, head size]
        outputs.append(output.flatten(0, 1)[None])
        start += length * count
    return torch.cat(outputs, dim=1) if len(runs) > 1 or between_graphs else outputs[0]  # one run is not copied


def _attention(
    backend: str,
    module: nn.Module,
    query: torch.Tensor,  # [B, heads, L, head size]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **options: Any,
) -> Attended:
    """What every registered implementation does: settle what may be seen, then call the kernel that can do it."""
    flag = getattr(module, "is_causal", True)
    if is_causal and not flag:
        raise ValueError("The model is patched to be bidirectional but called with `is_causal=True`: patch it again.")
    causal = flag if is_causal is None else is_causal  # of the call, which transformers fills in from the config
    reach = None if not sliding_window else _window_reach(module.config, sliding_window, is_causal)
    ask_lengths = attention_mask is not None and attention_mask.dim() == 4 and attention_mask.shape[2] == 0
    mask = None if ask_lengths else attention_mask
    if ask_lengths and cu_seq_lens_q is None:
        raise ValueError(
            f"{type(module).__name__} got a packed row without its lengths, as a layer above it passes no keyword"
            " arguments on: give such a model padded batches."
        )

    if cu_seq_lens_q is not None and not torch.compiler.is_compiling():
        (rows, _, tokens, _), counted = query.shape, sum(_text_lengths(cu_seq_lens_q))
        if rows != 1 or counted != tokens:
            raise ValueError(
                f"`cu_seq_lens_q` counts {counted} tokens but the batch is {rows} x {tokens}: it must cover one packed"
                " row, as `packed_inputs(lengths)` do."
            )

    if backend in FLASH_KERNELS and (mask is None or mask.dim() == 2):
        states = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))  # each [B, L, heads, head size]
        if cu_seq_lens_q is None:
            options["position_ids"] = position_ids
        else:
            options |= {"cu_seq_lens_q": cu_seq_lens_q, "cu_seq_lens_k": cu_seq_lens_k}
            options |= {"max_length_q": max_length_q, "max_length_k": max_length_k}
        return FLASH_KERNELS[backend](module, states, mask, causal, reach, **options), None
    if backend in FLASH_KERNELS:
        logger.warning_once(
            "flash_attention_2 takes no attention mask: forwards with a mask run through sdpa (eager where the model"
            " caps its scores), those without stay on flash_attention_2."
        )
        backend = "sdpa" if options.get("softcap") is None else "eager"

    dense = _eager if backend == "eager" else _sdpa
    states = (query, key, value)
    if cu_seq_lens_q is not None:
        options["between_graphs"] = torch.compiler.is_compiling()
        return _attend_per_text(dense, module, states, mask, cu_seq_lens_q, causal, reach, **options), None
    if mask is None and query.shape[2] == key.shape[2]:
        _refuse_unannounced_packing(module, position_ids)
    return dense(module, states, mask, causal, **options)


def _refuse_unannounced_packing(module: nn.Module, position_ids: torch.Tensor | None) -> None:
    """Positions that start again mean several texts in a row; without lengths these would silently see each other,
    because bidirectional mask functions do not look at positions. Asked once a forward, in the first layer."""
    if position_ids is None or vars(module).get("layer_idx") or torch.compiler.is_compiling():
        return
    if (position_ids.diff(dim=-1) <= 0).any():
        raise ValueError(
            "`position_ids` start again inside a row, so it holds several texts: name their lengths with"
            " `packed_inputs(lengths)`."
        )


def _flash_of_package(
    module: nn.Module,
    states: States,  # each [B, L, heads, head size]
    padding: torch.Tensor | None,  # [B, L]
    causal: bool,
    reach: int | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """The flash-attn package, through transformers' own handling of padded and packed batches."""
    return _flash_attention_forward(
        *_in_half_precision(module, states),
        padding,
        query_length=states[0].shape[1],
        is_causal=causal,
        softmax_scale=scaling,
        sliding_window=None if reach is None else reach + 1,  # transformers hands the kernel one less, to both sides
        attn_implementation="flash_attention_2",
        **options,
    )


def _flash_of_torch(
    module: nn.Module,
    states: States,  # each [B, L, heads, head size]
    padding: torch.Tensor | None,  # [B, L]
    causal: bool,
    reach: int | None,
    *,
    scaling: float | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> torch.Tensor:
    """The same kernel as torch ships it since 2.10: no flash-attn to build, and every batch a packed row."""
    from torch.nn.attention.varlen import varlen_attn

    if any(options.get(name) for name in ("dropout", "softcap")) or options.get("s_aux") is not None:
        raise ValueError(
            "torch's own flash kernel has no attention dropout, soft-capping or sinks: install flash-attn or set the"
            " `backend` to sdpa or eager."
        )
    batch, length, heads, head_size = states[0].shape
    if states[1].shape[1] != length:
        raise ValueError("torch's own flash kernel works without a cache of keys: set `use_cache` to false.")
    # as many key heads as query heads, and one row of tokens [tokens, heads, head size]
    groups = heads // states[1].shape[2]
    query, key, value = _in_half_precision(module, states)
    key, value = (repeat_kv(grouped.transpose(1, 2), groups).transpose(1, 2) for grouped in (key, value))
    row = [batched.flatten(0, 1) for batched in (query, key, value)]
    ends, longest, real = cu_seq_lens_q, max_length_q or length, None
    if ends is None:
        sizes = torch.full((batch,), length, device=query.device)
        if padding is None:
            _refuse_unannounced_packing(module, position_ids)
        else:
            sizes, real = padding.sum(dim=-1), padding.flatten().nonzero()[:, 0]
            row = [tokens[real] for tokens in row]
        ends = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    back = -1 if reach is None else reach
    window = (back, 0 if causal else back)
    output = varlen_attn(*row, ends, ends, longest, longest, scale=scaling, window_size=window)
    if real is not None:
        output = output.new_zeros(batch * length, heads, head_size).index_copy(0, real, output)
    return output.unflatten(0, (batch, length))


def _in_half_precision(module: nn.Module, states: States) -> Iterator[torch.Tensor]:
    """Flash kernels compute in 16 bits; what layer norms kept in float32 (PEFT, autocast) hand them is cast back."""
    dtype, device = states[0].dtype, states[0].device.type
    if dtype == torch.float32:
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif getattr(module.config, "_is_quantized", False):
            dtype = module.config.dtype
        else:
            dtype = next(parameter.dtype for parameter in module.parameters())
    if dtype == torch.float32 and device == "cuda":
        raise ValueError(
            "flash_attention_2 computes in 16 bits but the model is in float32: load it in bfloat16, use autocast, or"
            " set the `backend` to sdpa."
        )
    return (tensor.to(dtype) for tensor in states)


FLASH_KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    "flash_attention_2": _flash_of_package,
    "flash_attention_2_of_torch": _flash_of_torch,
}
_DENSE_MASKS = {"eager": eager_mask, "sdpa": sdpa_mask}
for _name, _mask_function in (_DENSE_MASKS | dict.fromkeys(FLASH_KERNELS, flash_attention_mask)).items():
    AttentionInterface.register(_PREFIX + _name, partial(_attention, _name))
    AttentionMaskInterface.register(_PREFIX + _name, _mask_function)


# ------------------------- recurrent and convolutional layers of hybrids: text by text -------------------------

_SHORT = 64  # tokens; gated delta rules pad to as many


def _ends_as_mask(layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any] | None:
    """A layer hands its mask to its mixer, also when it runs again under gradient checkpointing, but not its row's
    lengths. A packed row has no mask, so where its texts end [texts + 1] travels in the mask's place."""
    ends = options.get("cu_seq_lens_q")
    return None if ends is None else (inputs, options | {"attention_mask": ends})


@torch.compiler.disable
def _refuse_what_mixers_ignore(model: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A mask of who sees whom, and texts that only positions tell apart."""
    mask = options.get("attention_mask", inputs[1] if len(inputs) > 1 else None)
    if isinstance(mask, torch.Tensor) and mask.dim() == 4 and mask.shape[2] > 0:
        raise ValueError(
            f"{type(model).__name__}: recurrence and convolution know no mask of who sees whom: give a hybrid model"
            " padded batches, or packed rows by `packed_inputs(lengths)`."
        )
    if options.get("cu_seq_lens_q") is None:
        _refuse_unannounced_packing(model, options.get("position_ids"))


@torch.compiler.disable
def _mix_per_text(
    own: Callable[..., torch.Tensor],
    hidden_states: torch.Tensor,  # [1, T, size]
    *inputs: Any,
    attention_mask: torch.Tensor | None = None,  # [B, L], or where the texts of a packed row end
    **options: Any,
) -> torch.Tensor:
    """The mixer's own forward for each text of a packed row, padded on the right, where it never looks."""
    if attention_mask is None or attention_mask.dim() != 1:
        return own(hidden_states, *inputs, attention_mask=attention_mask, **options)
    lengths = _text_lengths(attention_mask)
    texts = hidden_states[0].split(lengths)
    mixed = list(texts)
    # ZeRO-3 gathers weights in each call, on all ranks together, and these have other lengths.
    groups = [range(len(lengths))] if is_deepspeed_zero3_enabled() else _groups_of_like_length(lengths)
    for group in groups:
        rows = own(pad_sequence([texts[index] for index in group], batch_first=True))  # [texts, longest, size]
        for index, row in zip(group, rows, strict=True):
            mixed[index] = row[: lengths[index]]
    return torch.cat(mixed)[None]


def _groups_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Which texts share a padded batch: none becomes more than twice as long, unless it stays short."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not groups or 2 * max(lengths[index], _SHORT) < lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(index)
    return groups


def _mixers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of a hybrid that mix tokens otherwise than by attention: each has a convolution of its own."""
    if model.config.model_type not in HYBRIDS:
        return []
    return [module for module in model.modules() if any(isinstance(each, nn.Conv1d) for each in module.children())]


# ------------------------------------- patching a model and undoing it -------------------------------------


class AttentionPatch:
    """A patched model. `restore()`, or the end of a `with` block, makes the model exactly what it was."""

    def __init__(self, model: PreTrainedModel, mode: Mode, backend: str, sliding_window: SlidingWindow) -> None:
        self.model = model
        self.mode = mode
        self.sliding_window = sliding_window
        self.backend = backend
        self._before: list[tuple[Any, str, bool, Any]] = []  # owner, attribute, whether it had one, its value
        self._hooks: list[RemovableHandle] = []

    def _set(self, owner: Any, attribute: str, value: Any) -> None:
        had = hasattr(owner, attribute)
        self._before.append((owner, attribute, had, getattr(owner, attribute) if had else None))
        setattr(owner, attribute, value)

    def _run_per_text(self, mixers: Sequence[nn.Module]) -> None:
        """Let the mixers of a hybrid see each text of a packed row by itself."""
        model = self.model.base_model
        self._hooks.append(model.register_forward_pre_hook(_refuse_what_mixers_ignore, with_kwargs=True))
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer) and set(mixers) & set(layer.modules()):
                self._hooks.append(layer.register_forward_pre_hook(_ends_as_mask, with_kwargs=True))
        for mixer in mixers:
            own = vars(mixer).get("forward")
            self._before.append((mixer, "forward", own is not None, own))
            vars(mixer)["forward"] = partial(_mix_per_text, mixer.forward)

    def restore(self) -> None:
        """Undo the patch; without effect when it is undone already, or replaced by a later patch of the same model."""
        while self._before:
            owner, attribute, had, value = self._before.pop()
            if had:
                setattr(owner, attribute, value)
            else:
                delattr(owner, attribute)
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> AttentionPatch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


def patch_attention(
    model: nn.Module,
    mode: Mode = "bidirectional",
    *,
    sliding_window: SlidingWindow = "keep",
    backend: Backend | None = None,
) -> AttentionPatch:
    """Make the attention of a model bidirectional or causal, and ready for `packed_inputs` and `mask_inputs`.

    `model` is a transformers model, bare or with a head, or anything around one (PEFT, DDP). `backend` defaults to the
    one the model has. A sliding window is kept, two-sided when bidirectional, or ignored as LLM2Vec (2404.05961) does
    with Mistral. `is_causal` and an ignored window are written to the config, hence to config.json when the model is
    saved: wherever transformers loads it again, it attends as it was trained. A patch replaces an earlier one.
    """
    for option, value, choices in (
        ("mode", mode, ("bidirectional", "causal")),
        ("sliding_window", sliding_window, ("keep", "ignore")),
        ("backend", backend, (None, *BACKENDS)),
    ):
        if value not in choices:
            raise ValueError(f"`{option}` must be one of {', '.join(map(str, choices))}, got {value!r}.")
    inner = _transformers_model(model)
    earlier = vars(inner).get("_attention_patch")
    if earlier is not None:
        earlier.restore()

    modules = _checked_attention_modules(inner)
    encoder = _is_encoder(inner, modules)
    if encoder and mode == "causal":
        raise ValueError(f"{type(inner).__name__} is an encoder: `mode` must be bidirectional.")
    mixers = _mixers(inner)
    if mixers and mode == "bidirectional":
        raise ValueError(
            f"{type(inner).__name__} mixes tokens by recurrence or convolution as well ({type(mixers[0]).__name__}),"
            " which reads forward only: its attention (`mode`, in recipes `attention`) can only be causal."
        )
    implementation = _implementation(inner, backend)
    configs = {id(owner.config): owner.config for owner in (inner, inner.base_model, *modules)}.values()

    patch = AttentionPatch(inner, mode, implementation.removeprefix(_PREFIX), sliding_window)
    patch._set(inner, "_attention_patch", patch)
    causal = mode == "causal"
    for config in configs:
        patch._set(config, "_attn_implementation", implementation)
        if not encoder and getattr(config, "is_causal", True) != causal:
            patch._set(config, "is_causal", causal)
        if sliding_window == "ignore" and getattr(config, "sliding_window", None) is not None:
            # code that tells layer types apart insists on a number: one that no text can exceed
            mixed = "sliding_attention" in (getattr(config, "layer_types", None) or [])
            patch._set(config, "sliding_window", config.max_position_embeddings if mixed else None)
    for module in modules:
        patch._set(module, "is_causal", causal)
        if sliding_window == "ignore" and vars(module).get("sliding_window") is not None:
            patch._set(module, "sliding_window", None)
    if mixers:
        patch._run_per_text(mixers)
    return patch


def is_encoder(model: nn.Module) -> bool:
    """Whether the architecture is bidirectional by itself; a sentence for a model that cannot be patched."""
    inner = _transformers_model(model)
    return _is_encoder(inner, _checked_attention_modules(inner))


def current_patch(model: nn.Module) -> AttentionPatch | None:
    """The patch that a model has now; None without one."""
    return vars(_transformers_model(model)).get("_attention_patch")


def _transformers_model(model: nn.Module) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ValueError(f"{type(model).__name__} holds no transformers model: its attention cannot be patched.")


def _names_used(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names in the forward of a class, below its decorators."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code.co_names if code else ()


def _own_eager_function(kind: type[nn.Module]) -> Callable[..., Attended]:
    """The eager function that this attention class would fall back to: the one its forward names."""
    name = next(name for name in _names_used(kind) if "eager_attention" in name)
    return inspect.unwrap(kind.forward).__globals__[name]


def _attention_modules(model: nn.Module) -> list[nn.Module]:
    """The modules whose forward asks transformers' `AttentionInterface` for the attention function."""
    shared = {kind for kind in set(map(type, model.modules())) if _INTERFACE in _names_used(kind)}
    return [module for module in model.modules() if type(module) in shared]


def _checked_attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """All attention modules of a model that can be patched as a whole; a sentence for any other model."""
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder: only decoders and encoders can be patched.")
    if config.get_text_config() is not config:
        raise ValueError(f"{name} reads more than text: patch its text model instead of the whole.")
    modules = _attention_modules(model)
    known_to_model = inspect.unwrap(type(model.base_model).forward).__globals__.values()
    shares_masks = any(getattr(item, "__module__", None) == _MASK_BUILDERS for item in known_to_model)
    if not modules or not shares_masks:
        what = "attention" if not modules else "attention masks"
        raise ValueError(
            f"{name} computes its {what} itself instead of using transformers' shared functions, so it cannot be"
            " patched and would stay as it is."
        )
    if _mixers(model):
        return modules
    unknown = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    others = len(modules) != config.num_hidden_layers or any(isinstance(m, nn.Conv1d) for m in model.modules())
    if unknown or others:
        raise ValueError(
            f"{name} mixes tokens by other means than full or sliding attention ({len(modules)} attention modules in"
            f" {config.num_hidden_layers} layers), and those would stay causal: it cannot be patched."
        )
    return modules


def _is_encoder(model: PreTrainedModel, modules: list[nn.Module]) -> bool:
    """Whether the architecture is bidirectional by itself, masks included, so that its config needs no change."""
    names = _names_used(type(model.base_model))
    own_masks = "create_causal_mask" not in names or "use_bidirectional_attention" in names
    return own_masks and not any(getattr(module, "is_causal", True) for module in modules)


def _implementation(model: PreTrainedModel, backend: str | None) -> str:
    """The registered name for a back-end, after a check that model and machine can run it."""
    name = type(model).__name__
    wanted = backend or str(model.config._attn_implementation).removeprefix(_PREFIX)
    wanted = wanted.removesuffix("_of_torch")
    if wanted not in BACKENDS:
        raise ValueError(f"{name} attends through {wanted}: set `backend` to one of {', '.join(BACKENDS)}.")
    if (wanted == "sdpa" and not model._supports_sdpa) or (wanted in FLASH_KERNELS and not model._supports_flash_attn):
        raise ValueError(f"{name} cannot attend through {wanted}: set `backend` to another one.")
    if wanted in FLASH_KERNELS and not is_flash_attn_2_available():
        if not is_torch_greater_or_equal("2.10") or not torch.cuda.is_available():
            raise ValueError(
                "`backend` flash_attention_2 needs a CUDA device, and flash-attn or torch 2.10 or newer"
                f" (torch {torch.__version__}, CUDA {'' if torch.cuda.is_available() else 'not '}available): set it to"
                " sdpa."
            )
        wanted += "_of_torch"
    return _PREFIX + wanted
