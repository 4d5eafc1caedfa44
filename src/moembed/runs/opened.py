"""Models whose finished vectors are worked on: opened, and named in a folder that holds none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moembed.client.connection import is_url
from moembed.embedder import Embedder
from moembed.encoding import ROLES
from moembed.folder.bases import HUB_IDS, locate_base
from moembed.folder.modules import is_composed
from moembed.inference.static import StaticEmbedder
from moembed.inference.token_vectors import require_vector_of_text
from moembed.search.index_model import open_encoder
from moembed.types import UserError


def open_model(name: str, role: str, tag: str | None = None) -> Embedder | StaticEmbedder:
    """An encoder in float32 whose vectors can be worked on.

    Args:
        role: what its texts are embedded for.
        tag: of all texts, for models that choose experts by it.

    Raises:
        UserError: a server, a vector of every token, vectors that are made of others already, a role that
            nobody knows, a tag for a model without.
    """
    if is_url(name):
        raise UserError(f"{name} is a server, and its model may change: name the folder of the model")
    if is_composed(locate_base(name)):
        raise UserError(f"{name} is made of other models already: name those")
    encoder = open_encoder(name)
    assert isinstance(encoder, (Embedder, StaticEmbedder))
    try:
        require_vector_of_text(encoder, "what is made of its vectors")
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if role not in ROLES and role not in encoder.tokenizer.prompts:  # it would be embedded without a prompt
        known = ", ".join({**ROLES, **encoder.tokenizer.prompts})
        raise UserError(f"role {role!r} is not known, and {name} has no prompt of that name (known: {known})")
    if tag is not None:
        set_tag(encoder, name, tag)
    return encoder


def set_tag(model: Embedder | StaticEmbedder, name: str, tag: str) -> None:
    """Take ``tag`` for that of all texts.

    Raises:
        UserError: the model does not choose experts by tags.
    """
    if not isinstance(model, Embedder) or model.tags is None:
        raise UserError(f"the tag {tag!r} is given, and {name} does not choose experts by tags: leave it out")
    model.tag = tag


def stored_name(name: str) -> str:
    """By what another process finds the model: an absolute path, or the name of a packaged or hub model."""
    there = Path(name).exists()
    return str(Path(name).resolve()) if there or (name not in HUB_IDS and "/" not in name) else name


def require_apart(names: Sequence[str], out: str | Path) -> None:
    """Refuse to put a folder that names models in the place of one of them, which would be lost.

    Raises:
        UserError: ``out`` is one of the models, or holds it.
    """
    for name in names:
        if locate_base(name).resolve().is_relative_to(Path(out).resolve()):
            raise UserError(
                f"the new folder names the model {name} and does not hold it, so it cannot stand in the "
                f"place of {out}: choose another folder"
            )
