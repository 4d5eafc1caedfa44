"""The modules of a sentence-transformers folder: ``modules.json`` and what lies in the folder of each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moembed.files import read_json
from moembed.folder.parts import LEGACY_POOLING, MODULES
from moembed.model.pooling import POOLING
from moembed.types import UserError

_POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}


@dataclass(frozen=True)
class Module:
    """One entry of ``modules.json``: its class without the package, and its folder inside the model's."""

    kind: str
    path: str


def read_modules(folder: Path) -> list[Module]:
    """The modules in their order; none where there is no ``modules.json``.

    Raises:
        UserError: a damaged file, a module with code of its own, a path that leads out of the folder.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return []
    modules = []
    for entry in read_json(file, list):
        kind, path = (entry.get(key) if isinstance(entry, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(path, str):
            raise UserError(f"{file}: every module needs a type and a path, and {entry!r} lacks one")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"{file}: the path {path!r} leads out of the folder")
        if not kind.startswith("sentence_transformers."):
            raise UserError(f"{file}: the module {kind} brings code of its own, which is not run")
        modules.append(Module(kind.rsplit(".", 1)[-1], path))
    return modules


def encoder_folder(folder: Path) -> Path:
    """Where ``config.json``, the weights and the tokenizer lie: mostly the folder itself."""
    modules = read_modules(folder)
    if modules and modules[0].path and not (folder / modules[0].path / "config.json").is_file():
        raise UserError(
            f"{folder}: its first module is {modules[0].kind} in {modules[0].path}, where no config.json lies"
        )
    return folder / modules[0].path if modules else folder


def read_pooling(folder: Path, width: int) -> tuple[str, bool]:
    """How token states become a vector, and whether the folder normalises it."""
    modules = read_modules(folder)
    if not modules:
        warnings.warn(f"{folder} has no modules.json: mean pooling is assumed", stacklevel=2)
        return "mean", True
    kinds = [module.kind for module in modules]
    if kinds not in (MODULES, MODULES[:2]):
        known, found = " + ".join(MODULES), " + ".join(kinds)
        raise UserError(f"{folder}: a model made of {found} is not supported, only {known}")
    file = folder / modules[1].path / "config.json"
    values = read_json(file)
    modes = _modes(values, file)
    mode = "+".join(modes)
    if mode not in POOLING:
        raise UserError(f"{folder}: pooling {mode!r} is not supported (known: {', '.join(POOLING)})")
    if not values.get("include_prompt", True):
        raise UserError(
            f"{folder}: pooling that leaves the prompt out (include_prompt false) is not supported"
        )
    stated = values.get("embedding_dimension", values.get("word_embedding_dimension", width))
    if stated != width:
        raise UserError(f"{file} pools vectors of {stated} coordinates, the encoder's have {width}")
    note_unread(file, set(values) - _POOLING_KEYS - set(LEGACY_POOLING))
    return mode, kinds == MODULES


def _modes(values: dict[str, Any], file: Path) -> list[str]:
    """``pooling_mode``, else the flags of older files, else mean: as sentence-transformers takes them."""
    modes = values.get("pooling_mode") or [mode for key, mode in LEGACY_POOLING.items() if values.get(key)]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
        raise UserError(f"{file}: pooling_mode must be a name or a list of names, not {modes!r}")
    return modes


def note_unread(file: Path, keys: set[str]) -> None:
    """Say once which keys of a file are not read."""
    if keys:
        warnings.warn(f"{file}: not read, and without effect here: {', '.join(sorted(keys))}", stacklevel=3)
