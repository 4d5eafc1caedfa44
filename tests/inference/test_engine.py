"""Packed matrices give what the plain ones give, and the encoder they were made from is never touched."""

from __future__ import annotations

import copy
import os
import pickle
import random
import subprocess
import sys
import threading
import timeit
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.inference import packed as packed_module
from moembed.inference.engine import can_round, freeze
from moembed.inference.fingerprint import Fingerprint
from moembed.inference.layers import Packed, PackedMoE
from moembed.inference.packed import TILE, tiles
from moembed.moe.layer import MoE
from moembed.moe.loop import loop
from moembed.moe.router import Pairs, RouterConfig, Routing
from moembed.types import RouterStats, UserError

pytestmark = pytest.mark.skipif(not can_round(), reason="this PyTorch was built without oneDNN")

KINDS = {
    "dense": {},
    "dense, gated": {"gated": True, "activation": "silu"},
    "tanh": {"activation": "gelu_tanh"},
    "experts": {"moe": FlatMoE(layers=(1, 3), num_experts=4)},
    "gated experts": {"gated": True, "activation": "relu", "moe": FlatMoE(layers=(1,), num_experts=4)},
    "shared bias": {"moe": FlatMoE(layers=(1,), num_experts=4, bias="shared")},
    "no bias": {"moe": FlatMoE(layers=(0, 1), num_experts=4, bias="none"), "ffn_bias": False},
    "shared expert": {"moe": FlatMoE(layers=(1,), num_experts=4, num_shared_experts=1)},
    "raw top-1": {"moe": FlatMoE(layers=(1,), router=RouterConfig(top_k=1, normalize=None))},
    "expert choice": {"moe": FlatMoE(layers=(1,), router=RouterConfig(kind="expert_choice"))},
    "rope, pre-norm": {"position": "rope", "norm": "pre"},
}


@pytest.fixture(params=KINDS, ids=lambda name: name.replace(" ", "-"))
def model(request: pytest.FixtureRequest, make_model) -> Embedder:
    return make_model(**KINDS[request.param])


def slow(model: Embedder, texts: Sequence[str]) -> np.ndarray:
    """By definition: the encoder itself, padded attention, one expert after the other."""
    model.encoder.attention_backend, model.encoder.moe_backend = "padded", "loop"
    with torch.no_grad():
        vectors = model(model.tokenizer.batch(texts)).vector_BM.float().numpy()
    del model.encoder.attention_backend, model.encoder.moe_backend
    return vectors


def test_packed_is_the_slow_backend(model: Embedder, texts: list[str]) -> None:
    packed = model.encode(texts)
    assert any(isinstance(part, Packed) for part in model.engine.encoder(model.encoder).modules())
    np.testing.assert_allclose(packed, slow(model, texts), atol=2e-6)  # sums in another order


def test_packed_bfloat16_is_the_slow_backend(model: Embedder, texts: list[str], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    exact = slow(model, texts)
    rounded = Embedder.from_pretrained(tmp_path / "m", dtype="bfloat16", device="cpu")
    assert (rounded.encode(texts) * exact).sum(1).min() > 0.999  # bf16 has 8 bits, and a router may flip


def test_int8_is_close(model: Embedder, texts: list[str], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    rounded = Embedder.from_pretrained(tmp_path / "m", dtype="int8")
    assert (rounded.encode(texts) * slow(model, texts)).sum(1).min() > 0.99


def test_the_encoder_is_not_touched(model: Embedder, texts: list[str]) -> None:
    modules = list(model.modules())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    model.encode(texts)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, before[name])
    for name, tensor in model.parts().state.items():
        assert torch.equal(tensor, before["encoder." + name])
    part = model.encoder.layers[1].state_dict()
    assert all(torch.equal(part[name], before["encoder.layers.1." + name]) for name in part)


def double(model: Embedder) -> None:
    with torch.no_grad():
        model.encoder.layers[0].attention.qkv.weight.mul_(2)


def edit_data(model: Embedder) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def replace_parameter(model: Embedder) -> None:
    linear = model.encoder.layers[1].attention.out
    linear.weight = torch.nn.Parameter(linear.weight.detach() * 2)


def replace_module(model: Embedder) -> None:
    linear = model.encoder.layers[1].attention.out
    new = torch.nn.Linear(linear.in_features, linear.out_features)
    with torch.no_grad():
        new.weight.fill_(0.1)
        new.bias.fill_(0.2)
    model.encoder.layers[1].attention.out = new


def load_other(model: Embedder) -> None:
    model.load_state_dict({name: tensor * 0.9 for name, tensor in model.state_dict().items()})


def step_optimizer(model: Embedder) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(model.tokenizer.batch(["moles dig", "owls"])).vector_BM[:, 0].sum().backward()
    optimizer.step()


def change_activation(model: Embedder) -> None:
    model.encoder.layers[0].attention_norm.eps = 0.5


CHANGES = [
    double, edit_data, replace_parameter, replace_module, load_other, step_optimizer, change_activation
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_next_encode_sees_what_changed(
    change: Callable[[Embedder], None], moe_model: Embedder, texts: list[str]
) -> None:
    before = moe_model.encode(texts)
    name = moe_model.space()
    change(moe_model)
    after = moe_model.encode(texts)
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_allclose(after, slow(moe_model, texts), atol=2e-6)
    assert (moe_model.space() != name) == (change is not change_activation)  # no weight


def test_what_did_not_change_is_packed_once(moe_model: Embedder, texts: list[str]) -> None:
    moe_model.encode(texts)
    twin = moe_model.engine.encoder(moe_model.encoder)
    moe_model.encode(texts)
    assert moe_model.engine.encoder(moe_model.encoder) is twin
    moe_model.train()
    assert moe_model.engine.encoder(moe_model.encoder) is not twin
    moe_model.eval()
    assert moe_model.engine.encoder(moe_model.encoder) is not twin  # the old one gave its memory back


def test_a_fingerprint_is_cheap(minilm: Path) -> None:
    """Asked at every encode: 0.2 ms at most on a quiet machine, here with room for a busy one."""
    fingerprint = Fingerprint(Embedder.from_pretrained(minilm, device="cpu").encoder)
    assert fingerprint.holds()
    assert min(timeit.repeat(fingerprint.holds, number=10, repeat=20)) / 10 < 1e-3


# ---- threads and processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.filterwarnings("ignore::moembed.types.TruncationWarning")
def test_any_number_of_threads(moe_model: Embedder, tmp_path: Path, texts: list[str], dtype: str) -> None:
    moe_model.save_pretrained(tmp_path / "m")
    some = [*texts, "the owl hunts " * 9, "moles dig " * 9]
    alone = Embedder.from_pretrained(tmp_path / "m", dtype=dtype, device="cpu")
    expected = [alone.encode(text) for text in some]
    shared = Embedder.from_pretrained(tmp_path / "m", dtype=dtype, device="cpu")
    shared.engine.drop()  # so that all threads ask for the first one at once
    start = threading.Barrier(16)

    def work(seed: int) -> bool:
        start.wait()
        order = random.Random(seed).choices(range(len(some)), k=30)
        return all(np.array_equal(shared.encode(some[i]), expected[i]) for i in order)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(16)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_serves_what_was_loaded_before(minilm: Path) -> None:
    script = f"""
import os, signal
import torch
torch.set_num_threads(2)
from moembed import Embedder
model = Embedder.from_pretrained({str(minilm)!r}, device="cpu")
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(40)
assert model.encode(["moles dig tunnels " * 50] * 20).shape == (20, 384)
os._exit(0)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=60).returncode == 0


# ---- training, moving, copying ---------------------------------------------------------------------------


def test_a_model_that_served_trains(moe_model: Embedder, texts: list[str]) -> None:
    batch = moe_model.tokenizer.batch(texts)
    moe_model(batch).vector_BM.sum().backward()
    wanted = {name: parameter.grad for name, parameter in moe_model.named_parameters()}
    moe_model.zero_grad()
    moe_model.encode(texts)
    moe_model(batch).vector_BM.sum().backward()
    for name, parameter in moe_model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=0)


def test_a_model_that_served_moves(moe_model: Embedder, texts: list[str]) -> None:
    expected = moe_model.encode(texts)
    moe_model.encoder.to(torch.float64).to(torch.float32)
    np.testing.assert_array_equal(moe_model.encode(texts), expected)


def test_a_model_that_served_can_be_copied(moe_model: Embedder, texts: list[str]) -> None:
    expected = moe_model.encode(texts)
    np.testing.assert_array_equal(copy.deepcopy(moe_model).encode(texts), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(moe_model)).encode(texts), expected)


def test_encoding_while_training_leaves_the_parameters_alone(moe_model: Embedder, texts: list[str]) -> None:
    moe_model.train()
    np.testing.assert_allclose(moe_model.encode(texts), slow(moe_model.eval(), texts), atol=2e-6)
    moe_model.train()
    assert not any(isinstance(part, Packed) for part in moe_model.engine.encoder(moe_model.encoder).modules())
    assert all(part.training for part in moe_model.modules())


def test_int8_is_said_only_of_vectors_that_are(moe_model: Embedder, texts: list[str], tmp_path: Path) -> None:
    """In training, and in another precision than float32, nothing is rounded to 8 bits."""
    moe_model.save_pretrained(tmp_path / "m")
    model = Embedder.from_pretrained(tmp_path / "m", dtype="int8")
    rounded = model.space()
    assert model.dtype == "int8"
    assert rounded != moe_model.space()
    model.train()
    assert (model.dtype, model.space()) == ("float32", moe_model.space())
    assert np.abs(model.encode(texts) - moe_model.encode(texts)).max() <= 2e-6
    assert (model.eval().dtype, model.space()) == ("int8", rounded)
    for dtype in (torch.bfloat16, torch.float64):
        moved = Embedder.from_pretrained(tmp_path / "m", dtype="int8").to(dtype)
        assert moved.dtype == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(moved.encode(texts), copy.deepcopy(moe_model).to(dtype).encode(texts))


def test_serving_does_not_change_the_space(moe_model: Embedder, texts: list[str]) -> None:
    before = moe_model.space()
    moe_model.encode(texts)
    assert moe_model.space() == before


class TestInt8:
    @pytest.fixture
    def rounded(self, moe_model: Embedder, tmp_path: Path) -> Embedder:
        moe_model.save_pretrained(tmp_path / "m")
        return Embedder.from_pretrained(tmp_path / "m", dtype="int8")

    def test_a_vector_depends_on_its_own_text_alone(self, rounded: Embedder, texts: list[str]) -> None:
        some = [*texts, *(" ".join(text.split()[::-1]) for text in texts)]
        together = rounded.encode(some)
        np.testing.assert_array_equal(together, np.stack([rounded.encode(text) for text in some]))
        np.testing.assert_array_equal(together, rounded.encode(some, batch_tokens=40))
        np.testing.assert_array_equal(together, rounded.encode(some, batch_size=3))

    def test_is_a_space_of_its_own(self, rounded: Embedder, moe_model: Embedder) -> None:
        assert rounded.space() != moe_model.space()

    def test_keeps_the_weights_that_were_read(
        self, rounded: Embedder, moe_model: Embedder, texts: list[str], tmp_path: Path
    ) -> None:
        rounded.encode(texts)
        rounded.save_pretrained(tmp_path / "again")
        again = Embedder.from_pretrained(tmp_path / "again", device="cpu")
        for one, other in ((rounded, moe_model), (again, moe_model)):
            for name, parameter in one.named_parameters():
                assert torch.equal(parameter, moe_model.get_parameter(name))
            batch = other.tokenizer.batch(texts)
            torch.testing.assert_close(one(batch).vector_BM, other(batch).vector_BM, rtol=0, atol=0)

    def test_rows_of_zeros(self, rounded: Embedder) -> None:
        block = rounded.engine.encoder(rounded.encoder).layers[0].ffn
        assert bool(block(torch.zeros(3, rounded.dim)).isfinite().all())

    def test_needs_a_cpu(self, tmp_path: Path, moe_model: Embedder) -> None:
        moe_model.save_pretrained(tmp_path / "m")
        with pytest.raises(UserError, match="int8 needs a CPU"):
            Embedder.from_pretrained(tmp_path / "m", dtype="int8", device="cuda")
        with pytest.raises(UserError, match="float16 needs a GPU"):
            Embedder.from_pretrained(tmp_path / "m", dtype="float16", device="cpu")


@pytest.mark.parametrize("experts", [[0, 1, 2, 3, 3], [2, 2, 2, 2, 2], [1], [0, 3, 0, 3]], ids=str)
def test_lopsided_routing(moe_model: Embedder, experts: list[int]) -> None:
    """Empty experts, one token, all tokens to one expert."""
    block = moe_model.encoder.layers[1].ffn
    assert isinstance(block, MoE)
    hidden_TD = torch.randn(len(experts), moe_model.dim, generator=torch.Generator().manual_seed(0))
    expert_P = torch.tensor(experts)
    nothing = torch.zeros(())
    stats = RouterStats(
        1, len(experts), torch.bincount(expert_P, minlength=4), nothing, nothing, nothing, nothing
    )
    routing = Routing(
        torch.arange(len(experts)), expert_P, torch.rand(len(experts)), stats, nothing, nothing, stats.count_E
    )
    with torch.inference_mode():
        wanted = loop(block.experts, hidden_TD, routing)
        packed = freeze(moe_model.encoder).layers[1].ffn
        pairs = Pairs(routing.token_P, expert_P, routing.weight_P, nothing)
        assert isinstance(packed, PackedMoE)
        torch.testing.assert_close(packed.weighted(hidden_TD, pairs), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["experts", "gated experts", "shared bias", "no bias"])
def test_many_rows_get_what_few_get_in_8_bits(make_model, kind: str) -> None:
    """Few rows are rounded and scaled for all experts at once, many tile by tile: the same to the bit."""
    packed = freeze(make_model(**KINDS[kind]).encoder, int8=True).layers[1].ffn
    assert isinstance(packed, PackedMoE)
    hidden_TD = torch.randn(TILE, 16, generator=torch.Generator().manual_seed(0))
    parts = torch.split(hidden_TD, [3, 9, 100, TILE - 112])
    with torch.inference_mode():
        together, _ = packed(hidden_TD, (TILE,))
        assert torch.equal(together, torch.cat([packed(part, (len(part),))[0] for part in parts]))


@given(st.integers(0, 5 * TILE))
def test_tiles_hold_every_row_once(rows: int) -> None:
    found = list(tiles(rows))
    assert [row for part, _ in found for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.stop - part.start <= computed <= TILE for part, computed in found)
    assert sum(computed for _, computed in found) <= rows * 2


@pytest.mark.parametrize(("most", "sizes"), [(512, 32), (1024, 40)])  # without AMX, with it
def test_tiles_come_in_few_sizes(most: int, sizes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "TILE", most)
    found = [list(tiles(rows)) for rows in range(4 * most)]
    assert len({computed for some in found for _, computed in some}) == sizes
    for rows, some in enumerate(found):
        assert sum(part.stop - part.start for part, _ in some) == rows
        assert all(part.stop - part.start <= computed <= most for part, computed in some)
