"""Vectors that are made of those of other models: side by side, shifted by language, in fewer coordinates.

The folder of such an encoder holds no model, only the names of those it asks and what is done to their
vectors: ``config.json`` with ``model_type: composed``, and ``composed.safetensors``.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moembed.encoding import FULL, Progress, TextEncoder, Vectors, View, as_texts, truncate
from moembed.files import read_json, replacing, write_json
from moembed.folder.modules import COMPOSED
from moembed.search.alignment import Affine, GroupMeans, require_share, shift
from moembed.search.fusion import side_by_side, weight_shares
from moembed.types import UserError

_FILE = "composed.safetensors"
_VERSION = 1
_ROLES = ("query", "document")  # whose spaces are noted, to know another state of a model

LanguagesOf = Callable[[list[str]], Sequence[str | None]]


@dataclass(frozen=True, slots=True)
class LanguageShift:
    """`moembed.search.alignment.shift` by the language that is found in every text."""

    means: GroupMeans
    strength: float
    languages: LanguagesOf

    def __call__(self, vector_NM: np.ndarray, texts: list[str]) -> np.ndarray:
        found = self.languages(texts)
        if other := sum(language not in self.means.names for language in found):
            warnings.warn(
                f"{other} of {len(texts)} texts are in none of the languages that were aligned "
                f"({', '.join(self.means.names)}): their vectors stay where they are",
                stacklevel=2,
            )
        return shift(vector_NM, found, self.means, self.strength)


class ComposedEncoder:
    """A `moembed.encoding.TextEncoder` that asks others: side by side, shift, linear map, length 1.

    A text without a single token, whose vectors are zeros, stays a row of zeros.

    Args:
        weights: of the encoders, see `moembed.search.fusion.side_by_side`; None: as much of each.
        moved: shifts the vectors by language.
        linear: what is done to them last.
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder],
        weights: Sequence[float] | None = None,
        moved: LanguageShift | None = None,
        linear: Affine | None = None,
    ) -> None:
        self.encoders = list(encoders)
        self.weights = weight_shares(weights or [1.0] * len(self.encoders), len(self.encoders))
        self.moved, self.linear = moved, linear
        width = sum(encoder.dim for encoder in self.encoders)
        takes = [moved.means.mean_LM.shape[1]] if moved else []
        takes += [linear.weight_DM.shape[1]] if linear else []
        if wrong := [taken for taken in takes if taken != width]:
            raise UserError(
                f"the models give {width} coordinates, what follows was fitted to {wrong[0]}: fit it again"
            )

    @property
    def dim(self) -> int:
        """Width of the full vector."""
        return len(self.linear.bias_D) if self.linear else sum(encoder.dim for encoder in self.encoders)

    @property
    def max_length(self) -> int | None:
        """Tokens that every one of the models reads."""
        limits = [encoder.max_length for encoder in self.encoders if encoder.max_length is not None]
        return min(limits, default=None)

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        """See `moembed.encoding.TextEncoder`; ``truncated`` is that of the model that cut most texts."""
        listed = as_texts(texts)
        self._require_width(view)
        shown = [progress, *[None] * len(self.encoders)]  # texts are told once
        found = [
            encoder.vectors(listed, role=role, prompt=prompt, progress=tell)
            for encoder, tell in zip(self.encoders, shown, strict=False)
        ]
        together_NM = side_by_side([one.array for one in found], self.weights)
        array_ND = truncate(self.transformed(together_NM, listed), view.dim)
        cut = max(one.truncated for one in found)
        return Vectors(array_ND, cut, self.space(role=role, prompt=prompt, view=view))

    def transformed(self, together_NM: np.ndarray, texts: list[str]) -> np.ndarray:
        """What becomes of vectors that stand side by side: ``(N, dim)`` of length 1."""
        array_NM = self.moved(together_NM, texts) if self.moved else together_NM
        array_ND = self.linear(array_NM) if self.linear else array_NM
        array_ND = np.where(together_NM.any(axis=1, keepdims=True), array_ND, 0)
        return truncate(array_ND, array_ND.shape[1])

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        """See `moembed.encoding.TextEncoder`."""
        self._require_width(view)
        spaces = [encoder.space(role=role, prompt=prompt) for encoder in self.encoders]
        facts = ["composed", *spaces, self.weights, view.dim or self.dim]
        if self.moved:
            facts += [self.moved.means.names, self.moved.strength]
        digest = hashlib.sha256(repr(facts).encode())
        for array in _arrays(self.moved, self.linear).values():
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def num_parameters(self) -> int:
        """Of what is done to the vectors, not of the models that make them."""
        return sum(array.size for array in _arrays(self.moved, self.linear).values())

    def role_prompt(self, role: str) -> str | None:
        """The name of the prompt that all models have for a role; None where they have none."""
        names = {encoder.role_prompt(role) for encoder in self.encoders}  # type: ignore[attr-defined]
        return names.pop() if len(names) == 1 else None

    def role_prefix(self, role: str | None) -> str:
        """The text that all models put in front of texts of a role.

        Raises:
            UserError: they put different ones: an index stores one.
        """
        prefixes = {encoder.role_prefix(role) for encoder in self.encoders}  # type: ignore[attr-defined]
        if len(prefixes) > 1:
            told = " and ".join(map(repr, sorted(prefixes)))
            raise UserError(
                f"these models put different texts in front ({told}), and an index stores one: embed with "
                "ComposedEncoder.vectors in Python, which gives each its own"
            )
        return prefixes.pop()

    def _require_width(self, view: View) -> None:
        if view.layers is not None or view.experts is not None:
            raise UserError("composed vectors have no layers and no experts to view: leave them out")
        if view.dim is not None and not 1 <= view.dim <= self.dim:
            raise UserError(f"dim {view.dim} is not within 1..{self.dim}")


def _arrays(moved: LanguageShift | None, linear: Affine | None) -> dict[str, np.ndarray]:
    found = {"means": moved.means.mean_LM} if moved else {}
    return found | ({"weight": linear.weight_DM, "bias": linear.bias_D} if linear else {})


def write_composed(folder: Path, names: Sequence[str], encoder: ComposedEncoder) -> None:
    """The folder that ``read_composed`` reads; an existing one gives way when the new one is whole.

    Args:
        names: of the models, folders as absolute paths.
    """
    from safetensors.numpy import save_file

    models = [
        {"name": name, "spaces": {role: one.space(role=role) for role in _ROLES}}
        for name, one in zip(names, encoder.encoders, strict=True)
    ]
    values: dict[str, Any] = {
        "model_type": COMPOSED,
        "version": _VERSION,
        "models": models,
        "weights": encoder.weights,
        "languages": list(encoder.moved.means.names) if encoder.moved else [],
        "strength": encoder.moved.strength if encoder.moved else None,
    }
    with replacing(folder) as made:
        write_json(made / "config.json", values)
        arrays = {
            name: np.ascontiguousarray(array)
            for name, array in _arrays(encoder.moved, encoder.linear).items()
        }
        save_file(arrays, made / _FILE)


def read_composed(
    folder: Path, open_model: Callable[[str], TextEncoder], languages: LanguagesOf | None = None
) -> ComposedEncoder:
    """The encoder of a folder, and the models that it names.

    Args:
        open_model: makes an encoder of the name of a model.
        languages: finds the language of texts; default: `moembed.inference.languages.detect`.

    Raises:
        UserError: a damaged folder, one of another version, a model that is not there or is not the same any
            more.
    """
    from moembed.inference.languages import detect

    file = folder / "config.json"
    values = read_json(file)
    if values.get("version") != _VERSION:
        raise UserError(f"{file} is of another version of moembed: make the folder again")
    try:
        spaces = [(str(model["name"]), dict(model["spaces"])) for model in values["models"]]
        weights, names = [float(weight) for weight in values["weights"]], tuple(values["languages"])
        strength = float(values["strength"]) if names else 0.0
        require_share(strength)
        whole = isinstance(values["languages"], list) and all(isinstance(name, str) for name in names)
        if not whole or len(weights) != len(spaces):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{file} lacks its models, weights, languages or strength: make the folder again"
        ) from None
    arrays = _read_arrays(folder / _FILE, len(names))
    moved, linear = None, None
    if names:
        moved = LanguageShift(GroupMeans(names, arrays["means"]), strength, languages or detect)
    if "weight" in arrays:
        linear = Affine(arrays["weight"], arrays["bias"])
    encoders = []
    for name, noted in spaces:
        encoder = open_model(name)
        if changed := [role for role in noted if encoder.space(role=role) != noted[role]]:
            raise UserError(
                f"{name} gives other {changed[0]} vectors than when {folder} was made: make it again"
            )
        encoders.append(encoder)
    return ComposedEncoder(encoders, weights, moved, linear)


def _read_arrays(file: Path, languages: int) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: dict[str, np.ndarray] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is missing or damaged ({error}): make the folder again") from None
    whole = len(arrays.get("means", ())) == languages and ("weight" in arrays) == ("bias" in arrays)
    if not whole or not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(
            f"{file} lacks a tensor or a language, or holds NaN or infinite values: make the folder again"
        )
    return arrays
