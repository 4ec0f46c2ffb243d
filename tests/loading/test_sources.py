"""What a source is, by its files and by what the user says; and that it embeds as its authors' own code does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import AutoTokenizer

from llamafactory_embed import Encoder, open_encoder
from llamafactory_embed.data.embedding_tokenizer import wraps
from llamafactory_embed.loading.as_checkpoint import as_checkpoint
from llamafactory_embed.loading.llm2vec_settings import WRITTEN_EOS, adapter_below, embedder_settings
from llamafactory_embed.loading.repository import split_revision
from llamafactory_embed.loading.sentence_transformers_folder import UnknownModulesError
from llamafactory_embed.loading.source import find_source
from llamafactory_embed.model.families import find_family
from tests.embedders import PROSE
from tests.loading.published import (
    LATENTS,
    MNTP,
    SUPERVISED,
    copy_llm2vec,
    expected_of_llm2vec,
    save_adapter,
    save_pooling_and_attention,
    save_wrapped,
)
from tests.loading.sentence_transformers_models import TEXTS, write_model
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LAST: dict[str, Any] = {"pooling": "last", "attention": "causal"}


@pytest.fixture(scope="module")
def llm2vec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_llm2vec(tmp_path_factory.mktemp("llm2vec"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("plain") / "llama")


# ------------------------------------------------ LLM2Vec -------------------------------------------------


def assert_is_llm2vec(encoder: Encoder, name: str) -> None:
    expected = expected_of_llm2vec()
    texts, instruction = expected["texts"], expected["instruction"]
    np.testing.assert_allclose(encoder.encode(texts), expected[name]["documents"], **CLOSE)
    np.testing.assert_allclose(encoder.encode(texts, prompt=instruction), expected[name]["queries"], **CLOSE)


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        (MNTP, {}, "mntp"),
        (MNTP, {}, "mntp as the model"),
        (SUPERVISED, {}, "chain, mean"),
        (MNTP, {"adapters": [SUPERVISED]}, "chain, mean"),
        ("base", {"adapters": [MNTP, SUPERVISED]}, "chain, mean"),
        (SUPERVISED, {"skip_instruction": False}, "chain, skip_instruction false"),
    ],
)
def test_llm2vec_embeds_as_its_own_code_does(
    source: str, settings: dict[str, Any], expected: str, llm2vec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any of the forms in which its authors name a checkpoint."""
    monkeypatch.chdir(llm2vec)
    encoder = Encoder(source, device="cpu", **settings)
    assert_is_llm2vec(encoder, expected)
    assert encoder.source is not None
    assert encoder.source.kind == "llm2vec"


@pytest.mark.parametrize("mode", ["weighted_mean", "bos_token", "last_token", "eos_token"])
def test_poolings_of_llm2vec(mode: str, llm2vec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(llm2vec, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = Path(SUPERVISED, "llm2vec_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pooling_mode": mode}))
    assert_is_llm2vec(Encoder(SUPERVISED, device="cpu"), f"chain, {mode}")


def test_prompts_that_llm2vec_writes_around_the_texts_of_some_models(
    llm2vec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of the base model, which may lie somewhere else."""
    shutil.copytree(llm2vec, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = Path(MNTP, "adapter_config.json")
    base = expected_of_llm2vec()["wrapped_as"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    encoder = Encoder(SUPERVISED, device="cpu", base_model="base")
    assert_is_llm2vec(encoder, "chain, wrapped")
    text = encoder.encode("a")
    np.testing.assert_array_equal(encoder.encode("a", role="query"), text)  # without an instruction the marks stay


def test_the_description_says_what_was_taken(llm2vec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llm2vec)
    source = find_source(SUPERVISED)
    assert source.description == (f"LLM2Vec: adapter chain {MNTP} → {SUPERVISED} on base, mean pooling, bidirectional")
    assert (source.config.query_max_length, source.config.document_max_length) == (512, 400)


def test_an_adapter_whose_lower_one_is_absent_asks_for_it(
    llm2vec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapter_below("McGill-NLP/LLM2Vec-X-mntp-unsup-simcse") == "McGill-NLP/LLM2Vec-X-mntp"
    assert adapter_below("McGill-NLP/LLM2Vec-X-mntp") is None
    shutil.copytree(llm2vec / SUPERVISED, tmp_path / SUPERVISED)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"was trained on top of {MNTP}, which does not lie beside it.*`adapters`"):
        find_source(SUPERVISED)


def test_eos_of_a_model_that_llm2vec_does_not_have() -> None:
    assert WRITTEN_EOS["qwen2"] == "<|endoftext|>"
    with pytest.raises(ValueError, match="does not have for phi3 models"):
        embedder_settings({"pooling_mode": "eos_token"}, "there", "x/y", "phi3")


@pytest.mark.parametrize(
    ("saved", "problem"),
    [
        ({"pooling_mode": ["mean"]}, "unknown `pooling_mode"),
        ({"max_length": True}, "`max_length` must be a number of tokens above 0, not True"),
        ({"doc_max_length": None}, "`doc_max_length` must be a number of tokens above 0, not None"),
        ({"skip_instruction": "no"}, "`skip_instruction` must be true or false, not 'no'"),
    ],
)
def test_settings_of_llm2vec_of_another_kind(saved: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"there.* {problem}"):
        embedder_settings(saved, "there", "x/y", "llama")


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("adapter_config.json", "base_model_name_or_path"),
        ("config.json", "_name_or_path"),
        ("config.json", "model_type"),
    ],
)
def test_names_of_another_kind(file: str, key: str, tmp_path: Path) -> None:
    plain = {"auto_mapping": ["LlamaBiModel"], "model_type": "llama"}
    for path in ("model/config.json", "llm2vec/llm2vec_config.json", "llm2vec/adapter_config.json"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        settings = {} if path.endswith("llm2vec_config.json") else plain
        (tmp_path / path).write_text(json.dumps(settings | ({key: [1]} if path.endswith(f"/{file}") else {})))
    with pytest.raises(ValueError, match=rf"{file}: `{key}` must be text, not \[1\]"):
        find_source(tmp_path / "llm2vec", {"base_model": str(tmp_path / "model")})


# ------------------------------------------- Diffusion Embedder -------------------------------------------


def test_dream_with_an_adapter_reads_wrapped_texts(tmp_path: Path) -> None:
    """The Diffusion Embedder's layout is LLM2Vec's; every text stands in ChatML's marks."""
    base = save_tiny_model(tmp_path / "base", "dream")
    model = save_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    assert find_family(model.config) is not None
    (tmp_path / "adapter" / "llm2vec_config.json").write_text('{"pooling_mode": "mean", "skip_instruction": false}')
    encoder = Encoder(tmp_path / "adapter", device="cpu")
    string = f"<|im_start|>user\nFind it {PROSE[0]}<|im_end|>"
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)(string)["input_ids"]])
    with torch.no_grad():
        states = model.merge_and_unload()(input_ids=ids).last_hidden_state[0]
    np.testing.assert_allclose(encoder.encode(PROSE[0], prompt="Find it"), states.mean(0), **CLOSE)


# ----------------------------------------- Pooling-and-Attention ------------------------------------------


@pytest.mark.parametrize("pooling", ["latent", "multi_layer_latent"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_pooling_and_attention(pooling: Any, attention: str, tmp_path: Path) -> None:
    """Designs 2 to 5: transformers' states of the merged model through the pooler, whose arithmetic golden cases
    check."""
    adapter, adapted, pooler = save_pooling_and_attention(tmp_path, pooling, causal=attention == "causal")
    with pytest.raises(ValueError, match="name `attention`, `causal` for designs 2 and 3"):
        find_source(adapter)
    with pytest.raises(ValueError, match="name `latent_heads`"):
        find_source(adapter, {"attention": attention})
    encoder = Encoder(adapter, device="cpu", attention=attention, latent_heads=LATENTS["heads"])
    assert encoder.config.latent_head_size == LATENTS["head_size"]

    model = adapted.merge_and_unload()
    model.config.is_causal = attention == "causal"
    ids = tiny_tokenizer()(f"Find it{PROSE[0]}")["input_ids"] + [1] * (attention == "causal")
    with torch.no_grad():
        states = [each[0] for each in model(torch.tensor([ids]), output_hidden_states=True).hidden_states]
        expected = torch.nn.functional.normalize(pooler(states, [len(ids)])[0], dim=0)
    np.testing.assert_allclose(encoder.encode(PROSE[0], prompt="Find it"), expected, **CLOSE)


# --------------------------------------------- plain models -----------------------------------------------


def test_a_plain_decoder_embeds_with_the_settings_named(plain: Path) -> None:
    with pytest.raises(ValueError, match="does not say how it embeds: name `pooling` and `attention`"):
        find_source(plain)
    encoder = Encoder(plain, device="cpu", **LAST, query_template="e5")
    ids = tiny_tokenizer()(f"Instruct: Find it\nQuery: {PROSE[0]}")["input_ids"] + [1]
    with torch.no_grad():
        state = tiny_model("llama").model(torch.tensor([ids])).last_hidden_state[0, -1]
    expected = torch.nn.functional.normalize(state, dim=0)
    np.testing.assert_allclose(encoder.encode(PROSE[0], prompt="Find it"), expected, **CLOSE)
    assert encoder.config.query_max_length == 512  # of tokenizer and model


def test_an_encoder_of_transformers_needs_no_attention(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=300, **sizes)).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    encoder = Encoder(tmp_path, device="cpu", pooling="mean")
    ids = torch.tensor([tiny_tokenizer()(PROSE[0])["input_ids"]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(ids).last_hidden_state[0].mean(0), dim=0)
    assert encoder.config.attention == "bidirectional"
    np.testing.assert_allclose(encoder.encode(PROSE[0]), expected, **CLOSE)


def test_an_adapter_of_peft_on_a_plain_decoder(plain: Path, tmp_path: Path) -> None:
    model = save_adapter(plain, tmp_path / "adapter").merge_and_unload()
    with pytest.raises(ValueError, match="is an adapter that does not say how it embeds"):
        find_source(tmp_path / "adapter")
    encoder = Encoder(tmp_path / "adapter", device="cpu", pooling="mean", attention="causal")
    ids = torch.tensor([tiny_tokenizer()(PROSE[0])["input_ids"]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(ids).last_hidden_state[0].mean(0), dim=0)
    np.testing.assert_allclose(encoder.encode(PROSE[0]), expected, **CLOSE)


def test_a_model_of_tdro_ends_each_text_with_one_eos(plain: Path, tmp_path: Path) -> None:
    """Its tokenizer has a `[PAD]` of its own, and a post-processor that writes EOS."""
    folder = shutil.copytree(plain, tmp_path / "tdro")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> <s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    tdro = Encoder(folder, device="cpu", **LAST, query_template="e5")
    assert tdro.tokenizer.documents(["a"])[0].token_ids[-2:] != [1, 1]
    ours = Encoder(plain, device="cpu", **LAST, query_template="e5")
    np.testing.assert_allclose(tdro.encode(PROSE[:3]), ours.encode(PROSE[:3]), **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_in_the_layout_of_diffullama(family: str, tmp_path: Path) -> None:
    folder = save_wrapped(tmp_path / "wrapped", family)
    encoder = Encoder(folder, device="cpu", pooling="mean", attention="bidirectional")
    whole = Encoder(
        save_tiny_model(tmp_path / "plain", family), device="cpu", pooling="mean", attention="bidirectional"
    )
    np.testing.assert_allclose(encoder.encode(PROSE[:2]), whole.encode(PROSE[:2]), **CLOSE)


# ------------------------------------------- names and settings -------------------------------------------


def test_a_name_on_the_hub_with_its_revision(plain: Path, tmp_path: Path) -> None:
    """From a cache, as the hub's own client lays it out."""
    for commit, seed in (("a" * 40, 0), ("b" * 40, 1)):
        save_tiny_model(tmp_path / "models--who--what" / "snapshots" / commit, seed=seed)
    refs = tmp_path / "models--who--what" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    (refs / "v2").write_text("b" * 40)
    main = Encoder("who/what", device="cpu", cache_dir=tmp_path, **LAST)
    second = Encoder("who/what@v2", device="cpu", cache_dir=tmp_path, **LAST)
    np.testing.assert_array_equal(main.encode(PROSE[:2]), Encoder(plain, device="cpu", **LAST).encode(PROSE[:2]))
    assert not np.allclose(main.encode(PROSE[:2]), second.encode(PROSE[:2]), atol=1e-3)
    assert split_revision("who/what@v2") == ("who/what", "v2")
    with pytest.raises(ValueError, match="a folder has no revisions"):
        split_revision(f"{plain}@main")
    with pytest.raises(ValueError, match="who/nothing is no folder, and the hub does not give it at `v9`"):
        Encoder("who/nothing@v9", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"poling": "last"}, "no setting `poling` of an embedder; did you mean `pooling`"),
        ({"pooling": "middle", "attention": "causal"}, "`pooling` must be one of"),
        ({**LAST, "base_model": "x"}, "`base_model` is the model below an adapter"),
        ({**LAST, "adapters": ["."]}, "`adapters`: . holds no adapter_config.json"),
    ],
)
def test_settings_that_cannot_be_get_one_sentence(settings: dict[str, Any], sentence: str, plain: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_source(plain, settings)


def test_a_model_in_memory_takes_other_texts_only(plain: Path) -> None:
    model = Encoder(plain, device="cpu", **LAST).model
    assert Encoder(model, tiny_tokenizer(), query_template="llm2vec").config.query_template == "llm2vec"
    with pytest.raises(ValueError, match="`pooling` of a model in memory cannot change any more"):
        Encoder(model, tiny_tokenizer(), pooling="mean")


def test_which_queries_are_written_like_documents() -> None:
    assert wraps("[INST] {instruction} {text} [/INST]", "[INST] {text} [/INST]")
    assert wraps("{instruction} {text}", "{text}")
    assert not wraps("Instruct: {instruction}\nQuery: {text}", "passage: {text}")
    assert not wraps("query: {text}", "passage: {text}")


def test_nothing_runs_code_of_a_checkpoint(llm2vec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The configuration beside the adapter names a class in a file of its own, which would leave a mark."""
    shutil.copytree(llm2vec, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    Path(MNTP, "modeling_llama_encoder.py").write_text(f"open({str(mark)!r}, 'w')\nclass LlamaEncoderModel: ...\n")
    Encoder(MNTP, device="cpu").encode("a")
    assert not mark.exists()


# ------------------------------- sentence-transformers and well-known models -------------------------------


def test_a_folder_of_sentence_transformers_in_our_engine_and_in_its_own(tmp_path: Path) -> None:
    known = write_model(tmp_path / "known", "llama", "mean", [(16, torch.nn.Tanh())])
    encoder = open_encoder(known, device="cpu")
    assert isinstance(encoder, Encoder)
    assert encoder.source is not None
    theirs = SentenceTransformer(str(known), device="cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs.encode_document(TEXTS), **CLOSE)
    with as_checkpoint(encoder.source) as checkpoint:
        np.testing.assert_allclose(Encoder(checkpoint, device="cpu").encode(TEXTS), encoder.encode(TEXTS), **CLOSE)

    unknown = write_model(tmp_path / "unknown", "mpnet", ["mean", "max"])
    with pytest.raises(UnknownModulesError, match="needs sentence-transformers"):
        Encoder(unknown, device="cpu")
    other = open_encoder(unknown, device="cpu")
    theirs = SentenceTransformer(str(unknown), device="cpu")
    np.testing.assert_allclose(other.encode(TEXTS), theirs.encode_document(TEXTS), **CLOSE)


def test_a_well_known_model_needs_no_settings(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "Qwen3-Embedding-0.6B", "qwen3")
    config = find_source(folder).config
    assert (config.pooling, config.attention, config.default_task) == ("last", "causal", "query")
    assert find_source(folder, {"query_max_length": 9}).config.query_max_length == 9
