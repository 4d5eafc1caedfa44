"""Our folders in transformers and sentence-transformers: same vectors, same files, and they train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoTokenizer

from conftest import PROMPTS, MakeModel
from moembed import Embedder
from moembed.families.flat import FlatMoE
from moembed.interop.config import MoembedConfig
from moembed.interop.hook import install
from moembed.interop.model import MoembedModel
from moembed.losses.balance import balance_loss, z_loss
from moembed.moe.router import RouterConfig
from moembed.packing import pack
from moembed.types import UserError

EQUAL = 1e-5
MOE = FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2))
MODELS = {
    "experts": {"moe": MOE},
    "shared experts, rotary, gated": {
        "moe": MOE.model_copy(update={"num_shared_experts": 1, "bias": "shared"}),
        "position": "rope",
        "gated": True,
        "activation": "silu",
    },
    "expert choice": {"moe": FlatMoE(layers=(0,), num_experts=4, router=RouterConfig(kind="expert_choice"))},
    "pre-norm": {"moe": MOE, "norm": "pre"},
    "dense": {},
}


@pytest.fixture(params=MODELS)
def ours(request: pytest.FixtureRequest, make_model: MakeModel) -> Embedder:
    return make_model(**MODELS[request.param])


@pytest.fixture
def folder(moe_model: Embedder, tmp_path: Path) -> Path:
    moe_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tokens(folder: Path, texts: list[str], **options: str) -> dict[str, torch.Tensor]:
    return AutoTokenizer.from_pretrained(folder, **options)(texts, padding=True, return_tensors="pt")


def rows(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    masked = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [ids[real].tolist() for ids, real in masked]


def ours_states(model: Embedder, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    packed = pack(rows(batch))
    hidden, _ = model.encoder(packed.token_T, packed.length_B)
    states = hidden[model.encoder.spec.num_layers].split(list(packed.length_B))
    return [states[int(place)] for place in packed.restore_B]


# ---- loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_auto_model_gives_our_states_and_zeros_on_padding(
    ours: Embedder, texts: list[str], tmp_path: Path, side: str
) -> None:
    ours.save_pretrained(tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert isinstance(model, MoembedModel)
    assert not model.training
    batch = tokens(tmp_path / "model", texts, padding_side=side)
    with torch.no_grad():
        states_BSD = model(**batch).last_hidden_state
        for row, mask, expected in zip(
            states_BSD, batch["attention_mask"].bool(), ours_states(ours, batch), strict=True
        ):
            assert (row[mask] - expected).abs().max() <= EQUAL
            assert (row[~mask] == 0).all()


def test_padding_is_neither_computed_nor_routed(folder: Path, texts: list[str]) -> None:
    model = AutoModel.from_pretrained(folder)
    batch = tokens(folder, texts)
    seen: list[int] = []
    for layer in MOE.layers:
        model.encoder.layers[layer].ffn.router.register_forward_hook(
            lambda module, inputs, output: seen.append(len(inputs[0]))
        )
    model(**batch)
    assert seen == [int(batch["attention_mask"].sum())] * 2


def test_all_layers_and_tuples(folder: Path, texts: list[str]) -> None:
    model = AutoModel.from_pretrained(folder)
    batch = tokens(folder, texts)
    output = model(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == 5
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    (states_BSD,) = model(**batch, return_dict=False)
    assert torch.equal(states_BSD, output.last_hidden_state)


def test_a_row_without_tokens_is_zeros_and_disturbs_nobody(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    ids = torch.tensor([[2, 9, 3], [0, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    both = model(ids, mask).last_hidden_state
    assert torch.equal(both[:1], model(ids[:1]).last_hidden_state)
    assert (both[1] == 0).all()


def test_loading_twice_gives_the_same_model_and_every_stored_tensor_is_in_it(folder: Path) -> None:
    once, twice = (AutoModel.from_pretrained(folder).state_dict() for _ in range(2))
    stored = load_file(folder / "model.safetensors")
    assert set(once) == set(twice) == set(stored)
    for name, tensor in stored.items():
        assert torch.equal(once[name], tensor), name
        assert torch.equal(twice[name], tensor), name


def test_there_is_nothing_that_a_file_does_not_hold(folder: Path) -> None:
    assert not list(AutoModel.from_pretrained(folder).named_buffers())


def test_a_model_from_its_config_alone_starts_finite_and_normal(folder: Path) -> None:
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
    assert float(model.encoder.layers[1].ffn.up_EFD.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert (model.encoder.layers[1].ffn.up_bias_EF == 0).all()
    assert (model.encoder.layers[1].ffn_norm.weight == 1).all()


def test_the_config_says_what_transformers_asks(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, MoembedConfig)
    facts = (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
    )
    assert facts == (16, 4, 2, 24)
    assert config.vocab_size == config.encoder["vocab_size"]
    assert AutoConfig.from_pretrained(folder, router_balance=0.5).router_balance == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_router_in_float32(
    folder: Path, texts: list[str], dtype: torch.dtype
) -> None:
    exact = AutoModel.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=dtype)
    assert model.encoder.layers[1].ffn.router.weight_ED.dtype == torch.float32
    assert model.encoder.layers[1].ffn.up_EFD.dtype == dtype
    batch = tokens(folder, texts)
    mask = batch["attention_mask"][..., None]
    means = []
    for each in (model, exact):
        states_BSD = each(**batch).last_hidden_state
        assert states_BSD.dtype == each.dtype
        means.append((states_BSD * mask).float().sum(1) / mask.sum(1))
    assert nn.functional.cosine_similarity(*means).min() > 0.99


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_either_attention_implementation_may_be_asked_for(
    folder: Path, texts: list[str], kernel: str
) -> None:
    batch = tokens(folder, texts)
    asked = AutoModel.from_pretrained(folder, attn_implementation=kernel)
    plain = AutoModel.from_pretrained(folder)
    assert torch.equal(asked(**batch).last_hidden_state, plain(**batch).last_hidden_state)


def test_a_resized_vocabulary_is_told_and_read_back(folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    rows = model.config.vocab_size + 8
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(tmp_path / "larger")
    again = AutoModel.from_pretrained(tmp_path / "larger")
    assert again.config.vocab_size == again.encoder.spec.vocab_size == rows
    assert torch.equal(again.encoder.word.weight, model.encoder.word.weight)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="MoembedModel does not support"):
        AutoModel.from_pretrained(folder).gradient_checkpointing_enable()


def test_bad_arguments_are_one_sentence(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    ids = torch.tensor([[2, 9, 3]])
    with pytest.raises(UserError, match="do not support position_ids"):
        model(ids, position_ids=torch.arange(3)[None])
    with pytest.raises(UserError, match="do not support head_mask"):
        model(ids, head_mask=torch.ones(4, 2))
    with pytest.raises(UserError, match=r"input_ids has shape \(3,\), expected \(texts, tokens\)"):
        model(ids[0])
    with pytest.raises(UserError, match=r"shape \(1, 1, 3\), expected \(1, 3\)"):
        model(ids, attention_mask=torch.ones(1, 1, 3))
    with pytest.raises(UserError, match="holds no token"):
        model(ids, attention_mask=torch.zeros(1, 3))
    with pytest.raises(UserError, match="a text has 33 tokens, the model reads 32"):
        model(torch.full((1, 33), 9))
    with pytest.raises(UserError, match="unknown key 'widht', did you mean 'width'"):
        MoembedModel(MoembedConfig(encoder={**model.config.encoder, "widht": 3}))


# ---- sentence-transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean"])
def test_sentence_transformers_gives_our_vectors(
    make_model: MakeModel, texts: list[str], tmp_path: Path, pooling: str
) -> None:
    from sentence_transformers import SentenceTransformer

    ours = make_model(moe=MOE, pooling=pooling)
    ours.save_pretrained(tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.prompts == PROMPTS
    long = [*texts, "the mole digs " * 30]
    with pytest.warns(match="1 of 9 texts were cut"):
        expected = ours.encode(long)
    assert np.abs(theirs.encode(long) - expected).max() <= EQUAL
    assert np.abs(theirs.encode_query(texts) - ours.encode_query(texts)).max() <= EQUAL
    assert np.abs(theirs.encode_document(texts) - ours.encode_document(texts)).max() <= EQUAL
    assert theirs.similarity_fn_name == "cosine"


def test_what_they_save_we_read_back(make_model: MakeModel, texts: list[str], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    ours = make_model(moe=MOE, pooling="cls")
    ours.save_pretrained(tmp_path / "ours")
    SentenceTransformer(str(tmp_path / "ours"), device="cpu").save_pretrained(str(tmp_path / "theirs"))
    again = Embedder.from_pretrained(tmp_path / "theirs", device="cpu")
    assert again.encoder.spec == ours.encoder.spec
    assert (again.pooling.name, again.tokenizer.prompts) == ("cls", PROMPTS)
    assert again.tokenizer.max_length == ours.tokenizer.max_length
    for name, tensor in ours.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], tensor), name
    assert np.array_equal(again.encode_query(texts), ours.encode_query(texts))
    assert (
        load_file(tmp_path / "theirs" / "model.safetensors").keys()
        == load_file(tmp_path / "ours" / "model.safetensors").keys()
    )


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_new_and_legacy_pooling_keys_are_written_and_either_is_read(
    make_model: MakeModel, tmp_path: Path, mode: str
) -> None:
    make_model(moe=MOE, pooling=mode).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "1_Pooling" / "config.json"
    written = json.loads(file.read_text())
    new = {"embedding_dimension": 16, "pooling_mode": mode, "include_prompt": True}
    legacy = {"word_embedding_dimension": 16, f"pooling_mode_{mode}_token{'s' * (mode == 'mean')}": True}
    assert new.items() <= written.items()
    assert legacy.items() <= written.items()
    for keys in (new, legacy):
        file.write_text(json.dumps(keys))
        assert Embedder.from_pretrained(tmp_path / "model", device="cpu").pooling.name == mode


# ---- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("balance", "z"), [(0.5, 0.0), (0.0, 0.3), (0.5, 0.3)])
def test_the_router_loss_arrives_as_if_added_to_the_loss(
    folder: Path, texts: list[str], balance: float, z: float
) -> None:
    batch = tokens(folder, texts)
    hooked = AutoModel.from_pretrained(folder, router_balance=balance, router_z=z).train()
    hooked(**batch).last_hidden_state.square().mean().backward()

    plain = AutoModel.from_pretrained(folder).train()
    packed = pack(rows(batch))
    _, stats = plain.encoder(packed.token_T, packed.length_B)
    router = balance * balance_loss(stats, stats) + z * z_loss(stats, stats)
    (plain(**batch).last_hidden_state.square().mean() + router).backward()

    for (name, mine), theirs in zip(hooked.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None, name
        else:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_router_loss_changes_no_value_and_nothing_outside_training(
    folder: Path, texts: list[str]
) -> None:
    batch = tokens(folder, texts)
    plain = AutoModel.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, router_balance=0.5)
    expected = plain(**batch).last_hidden_state
    assert torch.equal(model.train()(**batch).last_hidden_state, expected)
    states_BSD = model.eval()(**batch).last_hidden_state
    (states_BSD * 0).sum().backward()
    assert (model.encoder.layers[1].ffn.router.weight_ED.grad == 0).all()


def test_it_trains_under_the_trainer_of_sentence_transformers(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    make_model(num_layers=2, moe=MOE.model_copy(update={"layers": (1,)})).save_pretrained(tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu", config_kwargs={"router_balance": 0.01})
    assert model[0].model.config.router_balance == 0.01
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    words = ["mole", "owl", "worms", "voles", "night", "long", "wide", "live"]
    data = Dataset.from_dict(
        {
            "query": [f"{a} {b}" for a in words for b in words],
            "document": [f"the {b} and the {a}" for a in words for b in words],
        }
    )
    options = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=24, per_device_train_batch_size=16, learning_rate=1e-2,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=0,
        lr_scheduler_type="constant",
    )  # fmt: skip
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=8)
    trainer = SentenceTransformerTrainer(model=model, args=options, train_dataset=data, loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    for name, parameter in model.named_parameters():
        if ".ffn." in name or "attention" in name:  # every expert by itself, and the router's row of each
            change = (parameter.detach() - before[name]).flatten(1 if parameter.ndim > 1 else 0)
            assert (change.abs().amax(-1) > 0).all(), name

    model.save_pretrained(str(tmp_path / "trained"))
    again = Embedder.from_pretrained(tmp_path / "trained", device="cpu")
    assert np.abs(again.encode(words) - model.encode(words)).max() <= EQUAL


# ---- registration -----------------------------------------------------------------------------------------


def test_moembed_may_be_imported_first_and_brings_no_transformers(folder: Path) -> None:
    code = f"""
import sys, moembed
print([name for name in ("transformers", "torch") if name in sys.modules])
from transformers import AutoConfig
print(AutoConfig.from_pretrained({str(folder)!r}).model_type)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "moembed"]


def test_transformers_may_be_imported_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "moembed")
    with pytest.raises(ValueError, match="moembed"):
        AutoConfig.from_pretrained(folder)
    finders = list(sys.meta_path)
    install()
    assert AutoConfig.from_pretrained(folder).model_type == "moembed"
    assert sys.meta_path == finders
