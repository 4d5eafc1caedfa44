"""The backend that was named runs, else the fastest; what was measured is kept, whatever the disk."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experts import make_moe, tokens
from moembed.embedder import Embedder
from moembed.machine import AUTO
from moembed.moe import timing
from moembed.moe.backends import BY_NAME, choose
from moembed.moe.layer import MoE
from moembed.moe.timing import fastest
from moembed.types import UserError

TIMES = {"slow": 3.0, "quick": 1.0, "middling": 2.0}


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where choices are written; nothing is measured yet."""
    monkeypatch.setenv("MOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MOEMBED_MOE_BACKEND", raising=False)
    monkeypatch.setattr(timing, "_measured", {})
    return tmp_path / "cache" / "backends.json"


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """As in a new process."""
    return lambda: monkeypatch.setattr(timing, "_measured", {})


def chosen(moe: MoE, wanted: str) -> str:
    return choose(moe.router, moe.experts, tokens(3), wanted).name


def never(backend: str) -> float:
    pytest.fail(f"{backend} is measured again")


# ---- the fastest -----------------------------------------------------------------------------------


def test_the_fastest_is_measured_once(file: Path, forget: Callable[[], None]) -> None:
    assert fastest("case", list(TIMES), TIMES.__getitem__) == "quick"
    assert fastest("case", list(TIMES), never) == "quick"
    forget()
    assert fastest("case", list(TIMES), never) == "quick"
    assert fastest("other", ["slow", "middling"], TIMES.__getitem__) == "middling"
    assert json.loads(file.read_text()) == {"case": "quick", "other": "middling"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_choice_that_cannot_run_any_more_is_made_again(forget: Callable[[], None]) -> None:
    fastest("case", list(TIMES), TIMES.__getitem__)
    assert fastest("case", ["slow", "middling"], TIMES.__getitem__) == "middling"
    forget()
    assert fastest("case", ["slow", "middling"], never) == "middling"


def test_one_backend_needs_no_clock() -> None:
    assert fastest("case", ["slow"], never) == "slow"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'{"case": 3}', b'{"case": ["quick"]}', b"\xff\xfe"]
)
def test_a_broken_file_is_written_anew(file: Path, content: bytes, forget: Callable[[], None]) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    assert fastest("case", list(TIMES), TIMES.__getitem__) == "quick"
    forget()
    assert fastest("case", list(TIMES), never) == "quick"


def test_where_nothing_can_be_written_the_choice_still_holds(file: Path) -> None:
    file.parent.write_text("a file where the folder should be")
    assert fastest("case", list(TIMES), TIMES.__getitem__) == "quick"
    assert fastest("case", list(TIMES), never) == "quick"


def test_the_default_cache_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEMBED_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    fastest("case", list(TIMES), TIMES.__getitem__)
    assert (tmp_path / ".cache" / "moembed" / "backends.json").is_file()


# ---- the clock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["grouped", "grouped_mm"])
def test_measuring_leaves_no_trace(backend: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_TOKENS", 16)
    moe = make_moe(router={"jitter": 0.1}).train(training)
    ran: list[bool] = []

    def watched(*arguments: object) -> torch.Tensor:
        ran.append(torch.is_grad_enabled())
        return BY_NAME[backend].run(*arguments)

    before = torch.random.get_rng_state()
    with torch.no_grad():  # as in the first pass of GradCache
        assert 0 < timing.seconds(moe.router, moe.experts, tokens(3), watched) < math.inf
        assert not torch.is_grad_enabled()
    assert set(ran) == {training}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in moe.parameters())


def test_a_backend_that_fails_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_TOKENS", 16)

    moe = make_moe()

    def broken(*arguments: object) -> torch.Tensor:
        raise RuntimeError("out of registers")

    with pytest.warns(UserWarning, match="does not run here: out of registers"):
        assert timing.seconds(moe.router, moe.experts, tokens(3), broken) == math.inf


# ---- who decides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_on_a_cpu_the_experts_are_grouped(training: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(make_moe().train(training), AUTO) == "grouped"


def test_the_caller_outvotes_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_MOE_BACKEND", "grouped_mm")
    assert chosen(make_moe(), AUTO) == "grouped_mm"
    assert chosen(make_moe(), "loop") == "loop"


def test_an_unknown_backend_is_refused(moe_model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    moe_model.encoder.moe_backend = "fastest"
    with pytest.raises(UserError, match=r"moe_backend 'fastest' is not known \(known: auto, loop, grouped,"):
        moe_model.encoder(torch.tensor([2, 3]), [2])
    monkeypatch.setenv("MOEMBED_MOE_BACKEND", "x")
    moe_model.encoder.moe_backend = AUTO
    with pytest.raises(UserError, match="MOEMBED_MOE_BACKEND 'x' is not known"):
        moe_model.encoder(torch.tensor([2, 3]), [2])


@pytest.mark.parametrize(
    ("backend", "changes", "reason"),
    [
        ("grouped_mm", {"width": 6}, "needs widths that are multiples of 4, not 6 and 16"),
    ],
)
def test_a_backend_that_cannot_run_gives_way_with_a_warning(
    backend: str, changes: dict[str, int], reason: str
) -> None:
    moe = make_moe(**changes)
    hidden_TD = tokens(3, width=moe.up_EFD.shape[2])
    with pytest.warns(UserWarning, match=f"moe_backend '{backend}' {reason}; 'grouped' runs instead"):
        output_TD, _ = moe(hidden_TD, [3], backend)
    torch.testing.assert_close(output_TD, moe(hidden_TD, [3], "loop")[0])


def test_fused_says_what_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.warns(UserWarning, match="'fused' needs (the package triton|a CUDA device); 'grouped' runs"):
        assert chosen(make_moe(), "fused") == "grouped"
