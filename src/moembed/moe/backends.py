"""Which of several roads to the same value is taken: the one that was named, or the fastest on this machine.

The caller may name one (``encoder.moe_road = "fused"``), else the environment (``MOEMBED_MOE_ROAD=fused``).
``auto`` takes ``grouped`` on a CPU. On a GPU it runs those that can run on random states once, keeps the
fastest, and remembers it in ``roads.json`` under ``$MOEMBED_CACHE`` (default: ``~/.cache/moembed``).
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moembed.moe import fused, grouped
from moembed.moe.router import Routing
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.moe.layer import MoE

Road = Callable[["MoE", Tensor, Routing], Tensor]
AUTO = "auto"
_TOKENS, _REPEATS = 8192, 5  # of a measurement
_OBSTACLES = {
    "grouped_mm": grouped.obstacle,
    "fused": fused.obstacle,
}
_remembered: dict[str, str] = {}


def named(setting: str, wanted: str, known: Collection[str]) -> str | None:
    """The road that the caller or else the environment names; None where both leave it open.

    Raises:
        UserError: there is no such road.
    """
    variable = f"MOEMBED_{setting.upper()}"
    source, name = (setting, wanted) if wanted != AUTO else (variable, os.environ.get(variable) or AUTO)
    if name == AUTO:
        return None
    if name not in known:
        raise UserError(f"{source} {name!r} is not known (known: {AUTO}, {', '.join(known)})")
    return name


def possible(setting: str, name: str, obstacle: str | None, instead: str) -> str:
    """``name``, or where there is an obstacle a warning and ``instead``."""
    if obstacle is None:
        return name
    warnings.warn(f"{setting} {name!r} {obstacle}; {instead!r} runs instead", stacklevel=2)
    return instead


def moe_road(moe: MoE, hidden_TD: Tensor, wanted: str, roads: Mapping[str, Road]) -> str:
    """The road these experts take."""
    dtype, device = grouped.precision(hidden_TD), hidden_TD.device

    def obstacle(road: str) -> str | None:
        return _OBSTACLES[road](moe, dtype, device) if road in _OBSTACLES else None

    if name := named("moe_road", wanted, roads):
        return possible("moe_road", name, obstacle(name), "grouped")
    if device.type != "cuda":
        return "grouped"
    able = [road for road in ("grouped", "grouped_mm", "fused") if obstacle(road) is None]
    return fastest(_case(moe, dtype, device), able, lambda road: _seconds(moe, hidden_TD, roads[road]))


def fastest(case: str, roads: Sequence[str], seconds: Callable[[str], float]) -> str:
    """The road of the fewest ``seconds``, measured when this machine meets ``case`` for the first time."""
    if len(roads) == 1:
        return roads[0]
    road: Any = _remembered.get(case) or _read().get(case)
    if road not in roads:
        road = min(roads, key=seconds)
        _write(case, road)
    _remembered[case] = road
    return road


def _case(moe: MoE, dtype: torch.dtype, device: torch.device) -> str:
    experts, hidden, width = moe.up_EFD.shape
    gated = " gated" if moe.gate_EFD is not None else ""
    bias = " with bias" if moe.down_bias_ED is not None else ""
    return (
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {dtype}, {width} x {hidden} "
        f"{moe.activation_name}{gated}{bias}, {moe.router.config.top_k} of {experts} experts, "
        + ("training" if _trains(moe) else "serving")
    )


def _trains(moe: MoE) -> bool:
    """Whether there is a backward pass to come; GradCache's first pass has none, and takes the same road."""
    return moe.training and not torch.is_inference_mode_enabled()


def _seconds(moe: MoE, hidden_TD: Tensor, road: Road) -> float:
    """Median time of the road on random states, in training with its gradients."""
    learn, device = _trains(moe), hidden_TD.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.set_grad_enabled(learn):
        states_TD = torch.randn(_TOKENS, hidden_TD.shape[1], device=device).to(hidden_TD.dtype)
        states_TD.requires_grad_(learn)
        routing = moe.router(states_TD, [_TOKENS])
        routing.weight_P = routing.weight_P.detach().requires_grad_(learn)
        leaves = [states_TD, routing.weight_P, *(x for x in moe.parameters() if x.requires_grad)]

        def run() -> float:
            _wait(device)
            started = time.perf_counter()
            output_TD = road(moe, states_TD, routing)
            if learn:
                torch.autograd.grad(output_TD, leaves, torch.ones_like(output_TD), allow_unused=True)
            _wait(device)
            return time.perf_counter() - started

        try:
            run()  # compiles
            return median(run() for _ in range(_REPEATS))
        except Exception as error:  # of whatever kind a compiler raises on a GPU that it does not suit
            warnings.warn(f"a road of the experts does not run here: {error}", stacklevel=2)
            return float("inf")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _file() -> Path:
    return Path(os.environ.get("MOEMBED_CACHE") or os.path.expanduser("~/.cache/moembed")) / "roads.json"


def _read() -> dict[str, Any]:
    """What earlier runs measured; nothing if there is no such file or it is broken."""
    with suppress(OSError, ValueError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write(case: str, road: str) -> None:
    """Add it to the file; where none can be written, the next run measures again."""
    file = _file()
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(_read() | {case: road}, indent=1), encoding="utf-8")
        os.replace(unfinished, file)
