"""A linear layer behind pooling: one that gives another width, or one that was fitted to vectors."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor

from moembed.folder.parts import Parts
from moembed.model.head import Dense, HeadConfig, Normalize, Step


def add_projection(parts: Parts, dim: int, seed: int = 0) -> Parts:
    """The model with ``W x + b`` before its last normalisation: vectors of ``dim`` coordinates.

    W is drawn from a normal distribution of deviation ``1 / sqrt(in)``, so the length of vectors stays about
    what it was where the widths are equal; b is 0. It is a Dense module of the model, saved and served with
    it. Prefixes that were trained to stand alone, and a default cut, are those of the old vector and go.
    """
    before = parts.head.dim(parts.pooling.dim(parts.spec.width))
    generator = torch.Generator().manual_seed(seed)
    weight_DM = torch.empty(dim, before).normal_(0, 1 / sqrt(before), generator=generator)
    return _with_layer(parts, parts.head.steps[:-1], weight_DM, torch.zeros(dim))


def add_behind(parts: Parts, weight_DM: Tensor, bias_D: Tensor) -> Parts:
    """The model with ``W x + b`` of its embeddings, which have length 1, and the result made so again.

    Saved and served with it as a Dense module. Of prefixes and a relation it is as with ``add_projection``.
    """
    return replace(_with_layer(parts, parts.head.steps, weight_DM, bias_D), relation=None)


def _with_layer(parts: Parts, before: tuple[Step, ...], weight_DM: Tensor, bias_D: Tensor) -> Parts:
    dim, width = weight_DM.shape
    place = len(before)
    tensors = {f"{place}.linear.weight": weight_DM, f"{place}.linear.bias": bias_D}
    return replace(
        parts,
        head=HeadConfig((*before, Dense(width, dim, activation="identity"), Normalize())),
        head_state=parts.head_state | tensors,
        dims=(),
        truncate_dim=None,
    )
