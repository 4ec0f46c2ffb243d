"""SimCSE against LLM2Vec's numbers: the loss of given views, pooling of lines without an instruction, and how far
attention dropout takes two views of a line apart."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from attention_patch import Backend
from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.packed import pack_texts
from llamafactory_embed.model.pooling import build_pooler
from llamafactory_embed.train.embed.contrastive.simcse import set_attention_dropout
from llamafactory_embed.train.embed.losses.info_nce import info_nce
from tests.embedders import make_config, make_rows
from tests.golden.case_files import GoldenCase, golden_cases
from tests.golden.test_losses_golden import assert_golden, leaf


def loss_of_views(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """As the stage computes it: the second view is the positive."""
    return info_nce(make_rows(first, second), ContrastiveOptions(loss_temperature=temperature)).mean()


@golden_cases("llm2vec/simcse")
def test_loss(case: GoldenCase) -> None:
    views = case.part("fixed_embeddings")
    for expected in views["expected"]:
        first, second = leaf(views["view1"]), leaf(views["view2"])
        loss = loss_of_views(first, second, 1 / expected["scale"])
        loss.backward()
        assert_golden(loss, expected["loss"], case)
        assert_golden(first.grad, expected["grad_view1"], case)
        assert_golden(second.grad, expected["grad_view2"], case)


@golden_cases("llm2vec/simcse")
@torch.no_grad()
def test_lines_without_instruction_are_pooled_over_their_own_tokens(case: GoldenCase, tmp_path: Path) -> None:
    batch = case.part("no_separator_batch")
    source = case.folder_of(case.data["model"].split(" ")[0])
    model = AutoModel.from_pretrained(case.copy_model(tmp_path / "model", source)).eval()
    model.config.is_causal = False

    rows = [
        [token for token, real in zip(ids, mask, strict=True) if real]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    hidden = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows])
    pooler = build_pooler("mean", hidden_size=hidden.shape[1], num_layers=1, causal=False)
    counted = torch.tensor(batch["embed_mask"]).bool()[torch.tensor(batch["attention_mask"]).bool()]  # none at all
    pooled = pooler([hidden], [len(row) for row in rows], counted)
    torch.testing.assert_close(pooled, torch.tensor(batch["masked_mean"]), atol=5e-5, rtol=1e-4)
    if "loss_scale_20_masked_eval_mode" not in batch:
        return
    loss = loss_of_views(pooled, pooled, 1 / 20)
    torch.testing.assert_close(loss, torch.tensor(batch["loss_scale_20_masked_eval_mode"]), atol=1e-5, rtol=0)


DRAWS = 240  # a statistic's error falls with the root of their number
DRAWS_PER_FORWARD = 40


def load_embedder(case: GoldenCase, folder: Path, backend: Backend | None = None) -> EmbeddingModel:
    """The case's model as the stage trains it: bidirectional, packed, mean of the tokens."""
    source = case.folder_of(case.data["model"].split(" ")[0])
    backbone = AutoModelForCausalLM.from_pretrained(case.copy_model(folder, source))
    return EmbeddingModel(backbone, make_config(pooling="mean"), backend=backend)


def real_tokens(case: GoldenCase) -> list[list[int]]:
    batch = case.part("no_separator_batch")
    return [
        [token for token, real in zip(ids, mask, strict=True) if real]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


@torch.no_grad()
def draw_views(model: EmbeddingModel, lines: list[list[int]], draws: int) -> Tensor:
    """Embeddings [draws, lines, d] in the mode that the model is in."""
    views = [model(pack_texts(lines * DRAWS_PER_FORWARD)) for _ in range(math.ceil(draws / DRAWS_PER_FORWARD))]
    return torch.cat(views).unflatten(0, (-1, len(lines)))


@golden_cases("llm2vec/simcse")
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_two_views_are_as_far_apart(case: GoldenCase, backend: Backend, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_embedder(case, tmp_path, backend)
    lines = real_tokens(case)
    undisturbed = draw_views(model.eval(), lines, 1)[0]
    for row in case.part("view_statistics")["rows"]:
        set_attention_dropout(model.decoder, row["attention_dropout"])
        first, second = (draw_views(model.train(), lines, DRAWS) for _ in range(2))
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1).mean(0)  # [lines]
        error = (cosine - torch.tensor(row["mean_cosine_between_two_views"])).abs()
        draws = len(first)
        assert (error <= 5 * torch.tensor(row["std_of_one_draw"]) / math.sqrt(draws) + 0.005).all()
        distance = (torch.cat([first, second]) - undisturbed).norm(dim=-1).mean(0)
        expected = torch.tensor(row["mean_distance_to_eval_embedding"])
        torch.testing.assert_close(distance, expected, rtol=0.1, atol=1e-4)
        assert torch.equal(draw_views(model.eval(), lines, 1)[0], undisturbed)  # none in eval mode


@golden_cases("llm2vec/simcse")
def test_dropout_takes_the_route_of_the_original(case: GoldenCase, tmp_path: Path) -> None:
    """On attention and nowhere else, though not by the configuration, which would be saved with the checkpoint."""
    route = case.part("dropout_route")
    model = load_embedder(case, tmp_path)
    before = model.decoder.config.to_dict()
    set_attention_dropout(model.decoder, route["requested_simcse_dropout"])
    for facts in route["facts"].values():
        found = [layer.self_attn.attention_dropout for layer in model.decoder.layers]
        assert found == [facts["layer attention_dropout"]] * len(model.decoder.layers)
        dropouts = sum(isinstance(module, torch.nn.Dropout) for module in model.modules())
        assert dropouts == facts["number_of_nn.Dropout_modules"]
    assert model.decoder.config.to_dict() == before
