"""The denoising loop with tiny language models: rows do not depend on each other, caches are exact where they are."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import attention_patch
from llamafactory_embed.model import token_loss
from llamafactory_embed.sampling.canvas import Canvas, blocks_from_start, blocks_of
from llamafactory_embed.sampling.loop import Frame, split_steps
from llamafactory_embed.sampling.network import LanguageModelNetwork, make_bidirectional
from llamafactory_embed.sampling.sampler import Sampler
from llamafactory_embed.sampling.settings import SamplingSettings
from tests.patience import PATIENCE
from tests.tiny_models import tiny_model, tiny_tokenizer


MASK = 304  # behind the tokenizer's tokens, as an added one
ROWS = 310  # of the embedding matrix
END = 1
PROMPTS = [[0, 40, 41], [0, 50, 51, 52, 53, 54], [0, 60]]
DRAWN = SamplingSettings(steps=8, max_new_tokens=12, temperature=1.0, top_p=0.95, top_k=50, seed=7)
GREEDY = SamplingSettings(steps=8, max_new_tokens=12)
ALGORITHMS = (
    "origin",
    "maskgit_plus",
    "topk_margin",
    "entropy",
    "low_confidence",
    "random",
    "topk_low_score",
    "random_keep",
)


def make_sampler(
    family: str = "llama",
    settings: SamplingSettings = GREEDY,
    shift: bool = False,
    ends: tuple[int, ...] = (),
    **overrides: Any,
) -> Sampler:
    """Small weights, so that logits are close and the texts are not all the same token."""
    model = tiny_model(family, vocab_size=ROWS, **overrides)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    return Sampler(model, tiny_tokenizer(), settings, mask_token=MASK, shift=shift, end_tokens=ends)


def tokens_of(sampler: Sampler, prompts: list[list[int]] = PROMPTS, **kwargs: Any) -> list[list[int]]:
    return [generated.text for generated in sampler.complete(prompts, **kwargs)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_text_does_not_depend_on_its_batch(algorithm: str) -> None:
    settings = dataclasses.replace(DRAWN, algorithm=algorithm, alg_temp=0.3, block_length=5)
    sampler = make_sampler(settings=settings, shift=True)
    together = tokens_of(sampler, numbers=[10, 11, 12])
    alone = [tokens_of(sampler, [prompt], numbers=[10 + row])[0] for row, prompt in enumerate(PROMPTS)]
    assert together == alone
    assert together != tokens_of(sampler, numbers=[13, 14, 15])  # another number, another text
    assert all(text[: len(prompt)] == prompt for text, prompt in zip(together, PROMPTS, strict=True))
    assert all(len(text) == len(prompt) + 12 for text, prompt in zip(together, PROMPTS, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_padding_changes_nothing(family: str) -> None:
    sampler = make_sampler(family, shift=True)
    assert tokens_of(sampler) == [tokens_of(sampler, [prompt])[0] for prompt in PROMPTS]


def test_the_mask_and_what_is_no_token_are_never_written() -> None:
    sampler = make_sampler(settings=dataclasses.replace(DRAWN, top_k=0, top_p=1.0, temperature=50.0))
    head = sampler.model.get_output_embeddings()
    known = len(sampler.tokenizer)
    assert known < MASK
    with torch.no_grad():
        head.weight[known:] = head.weight[:known].mean(dim=0) * 40  # these would win
    for generated in sampler.complete(PROMPTS * 4):
        assert max(generated.tokens) < known


def test_chunks_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(DRAWN, repetition_penalty=1.3, cfg_scale=0.5)
    whole = tokens_of(make_sampler(settings=settings))
    heads: list[int] = []
    head = LanguageModelNetwork.head
    monkeypatch.setattr(token_loss, "LOGITS_PER_CHUNK", 4 * ROWS)
    monkeypatch.setattr(
        LanguageModelNetwork, "head", lambda self, states: heads.append(len(states)) or head(self, states)
    )
    assert tokens_of(make_sampler(settings=settings)) == whole
    assert max(heads) == 4


def test_a_window_is_kept_or_ignored_as_it_was_trained() -> None:
    prompt = [list(range(20, 40))]
    windowed, ignoring, without = (
        make_sampler("mistral", GREEDY, shift=True, sliding_window=window) for window in (4, 4, None)
    )
    ignoring.sliding_window = "ignore"
    assert tokens_of(ignoring, prompt) == tokens_of(without, prompt)
    assert tokens_of(windowed, prompt) != tokens_of(without, prompt)


def test_the_seed_decides() -> None:
    sampler = make_sampler(settings=DRAWN)
    again = make_sampler(settings=DRAWN)
    other = make_sampler(settings=dataclasses.replace(DRAWN, seed=8))
    assert tokens_of(sampler) == tokens_of(again)
    assert tokens_of(sampler) != tokens_of(other)


@pytest.mark.parametrize("block_length", [None, 3])
def test_gaps_are_filled_and_the_rest_stays(block_length: int | None) -> None:
    sampler = make_sampler(settings=dataclasses.replace(GREEDY, block_length=block_length))
    texts = [list(range(20, 32)), list(range(40, 47)), [MASK, 5, 6, MASK]]  # a mask that is given is a token
    holes = [[index in (0, 3, 4, 9) for index in range(12)], [index in (2, 6) for index in range(7)], [0, 1, 0, 0]]
    filled = sampler.fill(texts, [[bool(hole) for hole in row] for row in holes])
    for text, hole, generated in zip(texts, holes, filled, strict=True):
        assert [token for token, gap in zip(generated.text, hole, strict=True) if not gap] == [
            token for token, gap in zip(text, hole, strict=True) if not gap
        ]
        assert generated.tokens == [token for token, gap in zip(generated.text, hole, strict=True) if gap]
        assert MASK not in generated.tokens
    alone = [sampler.fill([text], [[bool(gap) for gap in hole]])[0] for text, hole in zip(texts, holes, strict=True)]
    assert filled == alone


def test_a_text_without_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="no gap to fill"):
        make_sampler().fill([[1, 2]], [[False, False]])


# --------------------------------------------------- the end ----------------------------------------------------


def likely_end(sampler: Sampler, token: int) -> Sampler:
    """The same sampler where that token ends a text, and is written often."""
    return dataclasses.replace(sampler, end_tokens=(token,))


def test_an_end_saves_forwards_and_changes_no_text() -> None:
    settings = dataclasses.replace(DRAWN, max_new_tokens=24, steps=24, block_length=4, top_k=0, top_p=1.0)
    free = make_sampler(settings=settings)
    written = free.complete(PROMPTS)
    end = written[0].tokens[5]  # somewhere in the second block
    stopping = likely_end(make_sampler(settings=settings), end)
    stopped = stopping.complete(PROMPTS)
    for long, short in zip(written, stopped, strict=True):
        expected = long.tokens[: long.tokens.index(end)] if end in long.tokens else long.tokens
        assert short.tokens == expected
        assert short.ended == (end in long.tokens)
    assert stopped[0].ended
    first = likely_end(make_sampler(settings=settings), end)
    first.complete(PROMPTS[:1])
    assert first.forwards <= 8  # two blocks of four steps
    assert free.forwards == 24


# ---------------------------------------------------- caches ----------------------------------------------------


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_a_cache_that_is_refreshed_in_every_step_changes_nothing(family: str, cache: str, shift: bool) -> None:
    settings = dataclasses.replace(DRAWN, block_length=4)
    cached = dataclasses.replace(settings, cache=cache, cache_refresh_steps=1)
    assert tokens_of(make_sampler(family, cached, shift)) == tokens_of(make_sampler(family, settings, shift))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("overrides", [{}, {"attn_implementation": "eager"}])
def test_one_layer_is_exact_under_any_cache(cache: str, shift: bool, overrides: dict[str, Any]) -> None:
    settings = dataclasses.replace(DRAWN, block_length=4)
    cached = dataclasses.replace(settings, cache=cache)
    plain = make_sampler("llama", settings, shift, num_hidden_layers=1, **overrides)
    fast = make_sampler("llama", cached, shift, num_hidden_layers=1, **overrides)
    assert tokens_of(fast) == tokens_of(plain)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_block_that_is_the_whole_text_is_exact(family: str, shift: bool) -> None:
    settings = dataclasses.replace(DRAWN, block_length=12)
    holes = [[True] * 12] * 2
    texts = [[0] * 12] * 2
    plain = make_sampler(family, settings, shift).fill(texts, holes)
    fast = make_sampler(family, dataclasses.replace(settings, cache="dual"), shift).fill(texts, holes)
    assert fast == plain


GAPS = ((4, 12), (20, 28), (36, 44), (20, 28), (18, 31))  # from … to before …


def texts_with_gaps() -> tuple[list[list[int]], list[list[bool]]]:
    """Of several lengths; two have their gaps in the same columns."""
    chance = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 300, (length,), generator=chance).tolist() for length in (48, 48, 44, 48, 50)]
    holes = [
        [start <= index < stop for index in range(len(text))] for text, (start, stop) in zip(texts, GAPS, strict=True)
    ]
    return texts, holes


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize(
    ("shift", "changes"),
    [
        (False, {"block_length": 4}),
        (True, {"block_length": 5, "cache_refresh_steps": 2, "algorithm": "entropy", "temperature": 0.7}),
        (True, {"block_length": 4, "confidence_threshold": 0.05, "cfg_scale": 0.5}),
        (True, {"block_size": 4}),
        (False, {"block_size": 4, "algorithm": "topk_low_score", "cache_refresh_steps": 3}),
    ],
)
def test_a_text_under_a_cache_does_not_depend_on_its_batch(
    family: str, cache: str, shift: bool, changes: dict[str, Any]
) -> None:
    """What a block leaves as it was is decided by the text's blocks, not by those of other texts."""
    base = dataclasses.replace(GREEDY, steps=12, algorithm="low_confidence", cache=cache, seed=1)
    settings = dataclasses.replace(base, **changes)
    sampler = make_sampler(family, settings, shift, num_hidden_layers=3)
    texts, holes = texts_with_gaps()
    together = sampler.fill(texts, holes, range(len(texts)))
    alone = [
        sampler.fill([text], [hole], [number])[0] for number, (text, hole) in enumerate(zip(texts, holes, strict=True))
    ]
    assert together == alone
    prompts = [text[:length] for text, length in zip(texts, (3, 7, 9, 14, 30), strict=True)]
    alone = [sampler.complete([prompt], [number])[0] for number, prompt in enumerate(prompts)]
    assert sampler.complete(prompts, range(len(prompts))) == alone


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_texts_whose_blocks_lie_in_the_same_columns_share_forwards(cache: str) -> None:
    settings = dataclasses.replace(GREEDY, block_length=4, cache=cache)
    texts, holes = texts_with_gaps()
    rows = (1, 3)

    def forwards(*numbers: int) -> int:
        sampler = make_sampler(settings=settings)
        sampler.fill([texts[number] for number in numbers], [holes[number] for number in numbers], numbers)
        return sampler.forwards

    assert forwards(*rows) == forwards(1) == forwards(3)
    assert forwards(0, 1, 3) == forwards(0) + forwards(1)


def test_watchers_are_told_which_texts_they_see() -> None:
    """Also where the texts of a batch are denoised in groups."""
    sampler = make_sampler(settings=dataclasses.replace(GREEDY, block_length=4, cache="dual"))
    texts, holes = texts_with_gaps()
    latest: dict[int, list[int]] = {}

    def watch(frame: Frame) -> None:
        for index, row in enumerate(frame.rows):
            latest[row] = frame.canvas.text(index)

    generated = sampler.fill(texts, holes, watch=watch)
    assert [latest[row] for row in range(len(texts))] == [each.text for each in generated]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_forwards_with_a_cache_ask_no_flash_kernel(cache: str) -> None:
    """Such kernels know no keys outside the columns that are computed."""
    settings = dataclasses.replace(DRAWN, block_length=4, cache=cache)
    sampler = make_sampler("mistral", settings, sliding_window=6)
    expected = tokens_of(sampler)
    patch = make_bidirectional(sampler.model, "keep")
    patch.backend = "flash_attention_2_of_torch"
    sampler.model.config._attn_implementation = "patched_flash_attention_2_of_torch"
    assert tokens_of(sampler) == expected


def test_logits_under_a_cache_are_close_and_computed_for_few_columns() -> None:
    columns: list[int] = []
    canvas = Canvas.of_prompts(PROMPTS, 8, MASK)
    changed = canvas.tokens.clone()
    changed[:, 6] = torch.tensor([70, 71, 72])  # revealed in the block, columns 6 to 9
    queried = torch.zeros_like(canvas.masked)
    queried[:, 7:10] = True

    def logits(cache: str) -> Tensor:
        model = tiny_model("llama", vocab_size=ROWS)
        model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: columns.append(output.shape[1]))
        network = LanguageModelNetwork(model, shift=False, cache=cache)
        network.enter_block(6, 10)
        with torch.inference_mode():
            network.states(canvas.tokens, canvas.real, queried)
            return network.head(network.states(changed, canvas.real, queried))

    exact, prefix, dual = logits("none"), logits("prefix"), logits("dual")
    assert columns == [14, 14, 14, 8, 14, 4]
    for approximate in (prefix, dual):
        assert not torch.equal(approximate, exact)
        similarity = nn.functional.cosine_similarity(approximate.flatten(), exact.flatten(), dim=0)
        assert similarity > 0.9
    assert (prefix - exact).norm() < (dual - exact).norm()


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_cache_is_exact_in_block_diffusion(family: str, shift: bool, cache: str) -> None:
    """No block sees a later one: what precedes a block does not change with it, and what follows does not matter."""
    settings = dataclasses.replace(DRAWN, block_size=4)
    plain, cached = (
        make_sampler(family, each, shift) for each in (settings, dataclasses.replace(settings, cache=cache))
    )
    aligned = [[0, 40, 41, 42], [0, 50, 51, 52]]
    for prompts in (aligned, PROMPTS, PROMPTS[1:2]):  # a prompt may end within a block, which it then belongs to
        assert tokens_of(cached, prompts) == tokens_of(plain, prompts)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("algorithm", ["low_confidence", "topk_low_score", "origin"])
def test_blocks_between_two_gaps_are_passed_over(algorithm: str, cache: str) -> None:
    """What they hold is given. Nothing there asks the network anything."""
    text = list(range(20, 40))
    holes = [index in (1, 2, 13) for index in range(len(text))]
    settings = dataclasses.replace(GREEDY, block_size=4, algorithm=algorithm, cache=cache)
    sampler = make_sampler(settings=settings)
    (filled,) = sampler.fill([text], [holes])
    assert [token for token, hole in zip(filled.text, holes, strict=True) if not hole] == [
        token for token, hole in zip(text, holes, strict=True) if not hole
    ]
    assert MASK not in filled.text
    assert sampler.forwards <= 4  # two blocks, two steps each


@pytest.mark.parametrize("shift", [False, True])
def test_a_gap_at_the_start_is_written_behind_what_texts_begin_with(shift: bool) -> None:
    """A model with a shift predicts a token from the one before it, which the first one does not have."""
    text, holes = [5, 40, 41, 42], [True, False, False, False]
    sampler = make_sampler(shift=shift)
    (filled,) = sampler.fill([text], [holes])
    (begun,) = sampler.fill([[0, *text]], [[False, *holes]])
    assert filled.text[-3:] == text[1:]
    if shift:
        assert filled == begun
    else:
        assert len(filled.text) == len(text)


def test_block_diffusion_does_not_look_ahead() -> None:
    """A text of three blocks, of four steps each, begins like a text of two."""
    settings = dataclasses.replace(GREEDY, block_size=4, algorithm="low_confidence")
    short = make_sampler(settings=dataclasses.replace(settings, max_new_tokens=6, steps=8))
    long = make_sampler(settings=dataclasses.replace(settings, max_new_tokens=10, steps=12))
    for prompt in ([0, 40], [0, 50, 51, 52, 53, 54]):
        (first,), (second,) = tokens_of(short, [prompt]), tokens_of(long, [prompt])
        assert second[: len(first)] == first


# ----------------------------------------------- steps and blocks -----------------------------------------------


def test_steps_are_shared_out_among_blocks() -> None:
    assert split_steps(12, 3) == [4, 4, 4]
    assert split_steps(7, 3) == [3, 2, 2]
    assert split_steps(2, 4) == [1, 1, 1, 1]


def test_blocks_are_counted_in_each_row() -> None:
    canvas = Canvas.of_texts([[1, 2, 3, 4, 5], [6, 7, 8]], [[0, 1, 0, 1, 1], [1, 1, 1]], MASK)
    assert blocks_of(canvas.generated, 2).tolist() == [[-1, 0, -1, 0, 1], [-1, -1, 0, 0, 1]]
    assert blocks_of(canvas.generated, None).tolist() == [[-1, 0, -1, 0, 0], [-1, -1, 0, 0, 0]]
    assert blocks_from_start(canvas.generated, canvas.real, 2).tolist() == [[-1, 0, -1, 1, 2], [-1, -1, 0, 0, 1]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_as_many_forwards_as_steps_at_most(algorithm: str) -> None:
    for steps in (1, 5, 12):
        sampler = make_sampler(settings=dataclasses.replace(DRAWN, algorithm=algorithm, steps=steps))
        assert MASK not in tokens_of(sampler)[0]
        assert 0 < sampler.forwards <= steps


def test_blocks_are_finished_from_left_to_right() -> None:
    sampler = make_sampler(settings=dataclasses.replace(GREEDY, block_length=4, max_new_tokens=12, steps=12))
    seen: list[list[int]] = []

    def watch(frame: Frame) -> None:
        blocks = frame.canvas.masked[0, -12:].reshape(3, 4).sum(dim=-1).tolist()
        seen.append(blocks)

    sampler.complete(PROMPTS[:1], watch=watch)
    assert seen == [[3, 4, 4], [2, 4, 4], [1, 4, 4], [0, 4, 4], [0, 3, 4], [0, 2, 4], [0, 1, 4], [0, 0, 4]] + [
        [0, 0, count] for count in (3, 2, 1, 0)
    ]


@pytest.mark.parametrize("change", [{"confidence_threshold": 0.0}, {"confidence_factor": 1e9}])
def test_a_network_that_is_always_sure_enough_needs_one_forward_a_block(change: dict[str, float]) -> None:
    sampler = make_sampler(settings=dataclasses.replace(GREEDY, block_length=4, **change))
    sampler.complete(PROMPTS)
    assert sampler.forwards == 3


@pytest.mark.parametrize("change", [{"confidence_threshold": 1.0}, {"confidence_factor": 0.0}])
def test_a_network_that_is_never_sure_reveals_one_position_a_step(change: dict[str, float]) -> None:
    sampler = make_sampler(settings=dataclasses.replace(GREEDY, steps=1, **change))
    one_by_one = make_sampler(settings=dataclasses.replace(GREEDY, steps=12))
    assert tokens_of(sampler) == tokens_of(one_by_one)
    assert sampler.forwards == 12


def test_no_prompt_starts_with_bos() -> None:
    sampler = make_sampler(settings=DRAWN)
    (generated,) = sampler.complete([[]])
    assert generated.text[0] == 0
    assert len(generated.tokens) == 12


def test_repetition_is_penalized() -> None:
    sampler = make_sampler(settings=dataclasses.replace(GREEDY, steps=12))
    repeated = 12 - len(set(sampler.complete(PROMPTS[:1])[0].tokens))
    strict = make_sampler(settings=dataclasses.replace(GREEDY, steps=12, repetition_penalty=1e4))
    (generated,) = strict.complete(PROMPTS[:1])
    assert repeated > 0
    assert len(set(generated.tokens)) == 12


def test_guidance_of_zero_changes_nothing_and_of_more_does() -> None:
    plain = tokens_of(make_sampler(shift=True))
    guided = make_sampler(shift=True, settings=dataclasses.replace(GREEDY, cfg_scale=4.0))
    assert tokens_of(guided) != plain
    cached = dataclasses.replace(GREEDY, cfg_scale=4.0, block_length=4, cache="dual", cache_refresh_steps=1)
    uncached = dataclasses.replace(cached, cache="none", cache_refresh_steps=None)
    assert tokens_of(make_sampler(settings=cached)) == tokens_of(make_sampler(settings=uncached))


# --------------------------------------- several answers with one model ---------------------------------------


def adapted_model() -> nn.Module:
    return get_peft_model(tiny_model("llama", vocab_size=ROWS), LoraConfig(r=2, target_modules="all-linear")).eval()


def test_an_answer_that_begins_does_not_disturb_one_that_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward at any moment of another answer's beginning sees the model patched."""
    model = adapted_model()
    canvas = Canvas.of_prompts(PROMPTS, 8, MASK)
    network = LanguageModelNetwork(model, shift=True)

    def states() -> Tensor:
        with torch.inference_mode():
            return network.states(canvas.tokens, canvas.real, canvas.masked)

    expected, seen = states(), []
    originals = {name: getattr(attention_patch, name) for name in ("_checked_attention_modules", "_implementation")}
    for name, original in originals.items():  # what patching does step by step

        def at_work_meanwhile(*args: Any, original: Any = original) -> Any:
            seen.append(states())
            return original(*args)

        monkeypatch.setattr(attention_patch, name, at_work_meanwhile)
    for cache in ("none", "prefix"):
        LanguageModelNetwork(model, shift=True, cache=cache)
        seen.append(states())
    assert all(torch.equal(each, expected) for each in seen)


def test_answers_in_several_threads_are_those_of_one() -> None:
    """The first ones also find the model without a patch, all at the same time."""
    prompts = [[0, 40, number] for number in range(50, 58)]

    def answer(sampler: Sampler, number: int) -> list[int]:
        return sampler.complete([prompts[number]], [number])[0].text

    one_by_one = Sampler(adapted_model(), tiny_tokenizer(), DRAWN, MASK, shift=True)
    expected = [answer(one_by_one, number) for number in range(len(prompts))]
    sampler = Sampler(adapted_model(), tiny_tokenizer(), DRAWN, MASK, shift=True)
    start = threading.Barrier(len(prompts))

    def answer_at_once(number: int) -> list[list[int]]:
        start.wait(PATIENCE)
        return [answer(sampler, number) for _ in range(3)]

    with ThreadPoolExecutor(len(prompts)) as threads:
        assert list(threads.map(answer_at_once, range(len(prompts)))) == [[text] * 3 for text in expected]


@pytest.mark.parametrize("before", ["causal", "bidirectional"])
def test_a_model_that_was_patched_otherwise_is_patched_anew(before: str) -> None:
    prompt = [list(range(20, 40))]
    sampler = make_sampler("mistral", GREEDY, shift=True, sliding_window=4)
    ignoring = dataclasses.replace(sampler, sliding_window="ignore")
    expected = tokens_of(make_sampler("mistral", GREEDY, shift=True, sliding_window=None), prompt)
    attention_patch.patch_attention(sampler.model, before)  # type: ignore[arg-type]
    assert tokens_of(ignoring, prompt) == expected
    assert tokens_of(sampler, prompt) != expected
