"""Small models whose experts are chosen by tags."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from moembed.embedder import Embedder
from moembed.weights.upcycle import UpcycleConfig, upcycle


def tagged_model(parts: Any, **router: Any) -> Embedder:
    """A dense model with a router by tags and one expert of each, all of them other ones."""
    options = UpcycleConfig.model_validate({"router": {"kind": "tag", "top_k": 1} | router})
    spec, state = upcycle(parts.spec, parts.state, options)
    model = Embedder(replace(parts, spec=spec, state=state)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if ".ffn." in name and name.split(".")[-1][-1] in "FD" and "router" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model
