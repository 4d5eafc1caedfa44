"""Made-up results of evaluations, shaped as `moembed evaluate --json` shapes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moembed.compare.scores import MAIN
from moembed.evaluation.result import EvaluationResult

SYSTEMS = ("bm25", "static", "minilm", "runs/demo")
TASKS = {
    "xquad-de": "retrieval",
    "xquad-th": "retrieval",
    "scifact": "retrieval",
    "stsb-en": "sts",
    "sts22-multilingual": "sts",
    "tatoeba": "bitext",
    "massive-intent": "classification",
    "arxiv-topics": "clustering",
}
MORE = {"retrieval": ("recall@10", "mrr@10", "hole@10"), "sts": ("pearson",)}  # metrics beside the main one
LANGUAGES = ("ar", "de", "en", "hi", "ja", "th")
LENGTHS = ("0-31", "32-63", "64-127", "128-255", "256-511")


def made(values: dict[str, Any]) -> EvaluationResult:
    return EvaluationResult.from_json(values)


def result(
    systems: Sequence[str] = SYSTEMS, tasks: Mapping[str, str] = TASKS, seed: int = 0
) -> dict[str, Any]:
    """With everything there can be; BM25 knows only retrieval."""
    rng = np.random.default_rng(seed)
    skill = dict(zip(systems, np.linspace(0.45, 0.62, len(systems)), strict=True))
    every = [name for name in systems if name != "bm25" or set(tasks.values()) == {"retrieval"}]

    def row(metrics: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
        value = {s: {m: skill[s] + rng.normal(0, 0.05) for m in metrics} for s in names}
        reference = value.get(systems[-1], {})
        return {
            "metrics": {s: {m: _cell(v) for m, v in cells.items()} for s, cells in value.items()},
            "differences": {
                s: {m: _gap(v - reference[m]) for m, v in cells.items()}
                for s, cells in value.items()
                if s != systems[-1]
            },
        }

    kinds = dict.fromkeys(tasks.values())
    able = {kind: list(systems) if kind == "retrieval" else every for kind in kinds}
    documents = {"retrieval": {"documents": 5183}}
    return {
        "systems": list(systems),
        "reference": systems[-1],
        "borda": {
            name: {"rank": place, "points": float(len(systems) - place)}
            for place, name in enumerate(systems, 1)
        },
        "paired": [],
        "seeds": dict.fromkeys(systems[:-1], 1) | {systems[-1]: 3},
        "tasks": {
            name: {
                "kind": kind,
                "main": MAIN[kind],
                "items": int(rng.integers(200, 5000)),
                "languages": ["en"],
                "notes": ["3 queries without relevant documents were left out"] if name == "scifact" else [],
                "seconds": {s: float(rng.uniform(2, 60)) for s in able[kind]},
                "truncated": {s: 12 for s in able[kind] if s == "minilm"},
                **documents.get(kind, {}),
                "queries": {s: _queries(rng) for s in systems[:-1]} if kind == "retrieval" else {},
                **row((MAIN[kind], *MORE.get(kind, ())), able[kind]),
            }
            for name, kind in tasks.items()
        },
        "made": {
            "date": "2026-11-28",
            "moembed": "0.2.0",
            "torch": "2.13.0",
            "cpu": "AMD EPYC",
            "cores": 2,
            "systems": {s: f"/models/{s}" for s in systems if s != "bm25"},
            "tasks": {name: f"/data/{name}" for name in tasks},
        },
        "overall": {"tasks": len(tasks), **row(["score"], every)},
        "kinds": {
            kind: {
                "tasks": list(tasks.values()).count(kind),
                "main": MAIN[kind],
                **row([MAIN[kind]], able[kind]),
            }
            for kind in kinds
        },
        "languages": {name: {"tasks": 4, "items": 700, **row(["score"], every)} for name in LANGUAGES},
        "lengths": {name: {"tasks": 8, "items": 900, **row(["score"], every)} for name in LENGTHS},
        "curves": {name: _curve(skill[name]) for name in systems[-2:]},
        "cost": {
            name: {
                "texts_per_second": 120.5 * place**2 or None,
                "peak_memory_bytes": 310_000_000 * place or None,
                "active_parameters": 21_300_000 * place or None,
                "parameters": 34_700_000 * place or None,
                "bytes_per_vector": 1536 if place else None,
            }
            for place, name in enumerate(systems)
        },
        "routers": {
            systems[-1]: {
                str(layer): {name: rng.dirichlet(np.full(8, 4.0)).tolist() for name in LANGUAGES}
                for layer in (1, 3, 5)
            }
        },
    }


def _queries(rng: np.random.Generator) -> dict[str, Any]:
    won, lost = (int(number) for number in rng.integers(1, 300, 2))
    gap = {"reference": 1.0, "other": 0.3869}
    return {
        "won": won,
        "lost": lost,
        "alike": 211,
        "most_won": [{"query": f"where do moles live in winter, number {n}?", **gap} for n in range(3)],
        "most_lost": [{"query": "what hunts voles?", "reference": 0.0, "other": 1.0}],
    }


def _cell(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.013, "high": value + 0.012}


def _gap(mean: float) -> dict[str, float]:
    p_value = math.erfc(abs(mean) / 0.012)
    p_holm = min(1.0, 8 * p_value)
    effect = mean / 0.4
    low, high = mean - 0.017, mean + 0.016
    return {"mean": mean, "low": low, "high": high, "p_value": p_value, "p_holm": p_holm, "effect": effect}


def _curve(skill: float) -> list[dict[str, Any]]:
    """Of halved dimensions, in three codecs."""
    loss = {"float32": 0.0, "int8": 0.004, "binary": 0.06}
    bits = {"float32": 32, "int8": 8, "binary": 1}
    return [
        {
            "dim": dim,
            "codec": codec,
            "bytes": dim * bits[codec] // 8,
            "score": _cell(skill - loss[codec] - 3.5 / dim),
        }
        for dim in (384, 256, 128, 64, 32)
        for codec in bits
    ]
