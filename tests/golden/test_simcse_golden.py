"""SimCSE against LLM2Vec's numbers: the loss of given views, and pooling of lines without an instruction."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel

from llamafactory_embed.model.pooling import build_pooler
from llamafactory_embed.train.embed.losses import simcse
from tests.golden.case_files import GoldenCase, golden_cases
from tests.golden.test_losses_golden import assert_golden, leaf


@golden_cases("llm2vec/simcse")
def test_loss(case: GoldenCase) -> None:
    views = case.data["fixed_embeddings"]
    for expected in views["expected"]:
        first, second = leaf(views["view1"]), leaf(views["view2"])
        loss = simcse(first, second, temperature=1 / expected["scale"])
        loss.backward()
        assert_golden(loss, expected["loss"], case)
        assert_golden(first.grad, expected["grad_view1"], case)
        assert_golden(second.grad, expected["grad_view2"], case)


@golden_cases("llm2vec/simcse")
@torch.no_grad()
def test_lines_without_instruction_are_pooled_over_their_own_tokens(case: GoldenCase, tmp_path: Path) -> None:
    batch = case.data["no_separator_batch"]
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
    loss = simcse(pooled, pooled, temperature=1 / 20)
    torch.testing.assert_close(loss, torch.tensor(batch["loss_scale_20_masked_eval_mode"]), atol=1e-5, rtol=0)
