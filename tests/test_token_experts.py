"""The experts of every token are those that the routers decided while the text was served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.inference.packed import TiledExperts
from moembed.moe.router import RouterConfig
from moembed.packing import pack
from moembed.token_experts import record_routing, token_experts
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

TEXT = "the mole dug, and the owl hunts voles"


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["token_choice", "expert_choice", "hash"])
def test_the_experts_are_those_of_the_served_text(
    kind: str, dtype: str, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RouterConfig(kind=kind, top_k=2)  # type: ignore[arg-type]
    made = make_model(moe=FlatMoE(layers=(1, 3), num_experts=4, router=config))
    made.save_pretrained(tmp_path / "model")
    model = Embedder.from_pretrained(tmp_path / "model", dtype=dtype)
    decided: list[tuple[Tensor, Tensor]] = []
    compute = TiledExperts.__call__

    def watched(
        self: TiledExperts, hidden_TD: Tensor, token_P: Tensor, expert_P: Tensor, counts: Any
    ) -> Tensor:
        decided.append((token_P, expert_P))
        return compute(self, hidden_TD, token_P, expert_P, counts)

    with monkeypatch.context() as patched:
        patched.setattr(TiledExperts, "__call__", watched)
        model.vectors([TEXT], role="query")
    found = token_experts(model, TEXT, role="query")
    assert [layer.layer for layer in found.layers] == [1, 3]
    for layer, (token_P, expert_P) in zip(found.layers, decided, strict=True):
        assert layer.num_experts == 4
        pairs = {(t, e) for t, experts in enumerate(layer.experts) for e in experts}
        assert pairs == set(zip(token_P.tolist(), expert_P.tolist(), strict=True))
        for weights, experts in zip(layer.weights, layer.experts, strict=True):
            assert weights == sorted(weights, reverse=True)
            assert len(weights) == len(experts)
            if weights:
                assert sum(weights) == pytest.approx(1, abs=1e-6)


def test_pieces_and_special_tokens_stand_beside_their_experts(moe_model: Embedder) -> None:
    found = token_experts(moe_model, "the mole dug", role="query")
    assert found.pieces == ["[CLS]", "query", ":", "the", "mole", "d", "##u", "##g", "[SEP]"]
    assert found.special == [True, *[False] * 7, True]
    assert [len(layer.experts) for layer in found.layers] == [9, 9]
    assert not found.truncated
    long = token_experts(moe_model, "mole " * 40, prompt="")
    assert (len(long.pieces), long.truncated) == (moe_model.max_length, True)


def test_a_dense_model_has_tokens_and_no_layers(make_model: MakeModel) -> None:
    found = token_experts(make_model(), "the owl")
    assert (found.pieces, found.layers) == (["[CLS]", "the", "owl", "[SEP]"], [])


def test_a_text_without_tokens_has_empty_layers(make_model: MakeModel, backend: Backend) -> None:
    model = make_model(moe=FlatMoE(layers=(1,), num_experts=4))
    bare = Backend.from_str(backend.to_str())
    bare.post_processor = None  # type: ignore[assignment]
    model.tokenizer = Tokenizer(bare, 8)
    found = token_experts(model, "")
    assert (found.pieces, [layer.experts for layer in found.layers]) == ([], [[]])


def test_half_a_letter_is_refused(moe_model: Embedder) -> None:
    with pytest.raises(UserError, match="surrogate"):
        token_experts(moe_model, "\ud800")


def test_others_who_use_the_model_are_neither_seen_nor_changed(moe_model: Embedder, texts: list[str]) -> None:
    alone = token_experts(moe_model, TEXT)
    vectors = moe_model.vectors(texts).array
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(moe_model.vectors, texts) for _ in range(6)]
        found = [pool.submit(token_experts, moe_model, TEXT) for _ in range(6)]
        assert all(future.result() == alone for future in found)
        assert all(np.array_equal(future.result().array, vectors) for future in others)


def test_the_twin_records_every_batch_and_gives_the_same_values(
    moe_model: Embedder, texts: list[str]
) -> None:
    rows, _ = moe_model.tokenizer.rows([text for text in texts if text])
    batch = pack(rows)
    hidden, stats = moe_model.encoder(batch.token_T, batch.length_B)
    twin, layers = record_routing(moe_model.encoder)
    for _ in range(2):
        again, _ = twin(batch.token_T, batch.length_B)
        assert again[4].equal(hidden[4])
    assert [layer.layer for layer in layers] == [1, 3, 1, 3]
    for layer, counted in zip(layers, stats * 2, strict=True):
        assert np.bincount(layer.expert_P, minlength=4).tolist() == counted.count_E.tolist()


def test_pieces_of_bytes_are_read_as_text() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    vocabulary |= {"Ã¼": 256, "Ġm": 257}
    backend = Backend(models.BPE(vocabulary, [("Ã", "¼"), ("Ġ", "m")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, 99)
    rows, _ = tokenizer.rows(["ü me é"])
    assert tokenizer.pieces([*rows[0], 999]) == ["ü", "▁m", "e", "▁", "Ã", "©", "999"]
