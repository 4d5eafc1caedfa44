"""The fastest of several backends, timed once per machine and shape.

What was measured stands in ``backends.json`` under ``$MOEMBED_CACHE`` (default: ``~/.cache/moembed``).
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from moembed.files import cache_folder, write_json
from moembed.moe.experts import Experts
from moembed.moe.router import Router, Routing
from moembed.types import TokenKeys, UserError

Run = Callable[[Experts, Tensor, Routing], Tensor]
_TOKENS, _REPEATS = 8192, 5  # of a measurement
_measured: dict[str, str] = {}


def fastest(case: str, names: Sequence[str], seconds: Callable[[str], float]) -> str:
    """The name of the fewest ``seconds``, measured when this machine meets ``case`` for the first time."""
    if len(names) == 1:
        return names[0]
    name: Any = _measured.get(case) or _read().get(case)
    if name not in names:
        name = min(names, key=seconds)
        _write(case, name)
    _measured[case] = name
    return name


def describe(router: Router, experts: Experts, dtype: torch.dtype, device: torch.device) -> str:
    """All that the time depends on, as the key under which it is kept."""
    count, hidden, width = experts.shape
    gated = " gated" if experts.gate_EFD is not None else ""
    bias = " with bias" if experts.down_bias_ED is not None else ""
    return (
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {dtype}, {width} x {hidden} "
        f"{experts.activation}{gated}{bias}, {router.config.top_k} of {count} experts, "
        + ("training" if _trains(router) else "serving")
    )


def _trains(router: Router) -> bool:
    """Whether there is a backward pass to come; GradCache's first pass has none, and times the same."""
    return router.training and not torch.is_inference_mode_enabled()


def seconds(router: Router, experts: Experts, hidden_TD: Tensor, run: Run) -> float:
    """Median time on random states, in training with its gradients; infinite where it fails."""
    learn, device = _trains(router), hidden_TD.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.set_grad_enabled(learn):
        # random states, routed as those of a batch would be
        states_TD = torch.randn(_TOKENS, hidden_TD.shape[1], device=device).to(hidden_TD.dtype)
        states_TD.requires_grad_(learn)
        routing = router(states_TD, [_TOKENS], _random_keys(router, device))
        routing.weight_P = routing.weight_P.detach().requires_grad_(learn)
        trained = (tensor for tensor in experts.tensors() if tensor.requires_grad)
        leaves = [states_TD, routing.weight_P, *trained]

        def once() -> float:
            _wait(device)
            started = time.perf_counter()
            output_TD = run(experts, states_TD, routing)
            if learn:
                torch.autograd.grad(output_TD, leaves, torch.ones_like(output_TD), allow_unused=True)
            _wait(device)
            return time.perf_counter() - started

        try:
            once()  # compiles
            return median(once() for _ in range(_REPEATS))
        except Exception as error:  # of whatever kind a compiler raises on a GPU that it does not suit
            warnings.warn(f"a backend of the experts does not run here: {error}", stacklevel=2)
            return float("inf")


def _random_keys(router: Router, device: torch.device) -> TokenKeys:
    """Keys that spread the tokens over what a router looks up."""
    number_T = torch.randint(1 << 16, (_TOKENS,), device=device)
    return TokenKeys(number_T, number_T % max(len(router.config.tags), 1))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _file() -> Path:
    return cache_folder() / "backends.json"


def _read() -> dict[str, Any]:
    """What earlier runs measured; nothing if there is no such file or it is broken."""
    with suppress(OSError, ValueError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write(case: str, name: str) -> None:
    """Add it to the file; where none can be written, the next run measures again."""
    with suppress(UserError):
        write_json(_file(), _read() | {case: name})
