"""The model that made an index."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moembed.encoding import SpaceRelation, TextEncoder, TokenVectors, Vectors, View
from moembed.types import TruncationWarning, UserError

if TYPE_CHECKING:
    from moembed.client.model import Client
    from moembed.embedder import Embedder
    from moembed.inference.static import StaticEmbedder
    from moembed.search.composed import ComposedEncoder

Found = TypeVar("Found", Vectors, TokenVectors)


def told_if_cut(found: Found) -> Found:
    """Vectors of questions, after a warning where some were longer than the model reads."""
    if found.truncated:
        questions = len(found.array if isinstance(found, Vectors) else found)
        warnings.warn(
            f"{found.truncated} of {questions} questions were longer than the model reads, and were cut",
            TruncationWarning,
            stacklevel=4,
        )
    return found


def model_name(path: Path, manifest: Mapping[str, Any]) -> str:
    """Where the model that made the index at ``path`` lies.

    Raises:
        UserError: the index does not say it, or the model is not there any more.
    """
    made_by = manifest.get("model_path")
    if made_by is None:
        raise UserError(f"{path} does not say which model made it; name it with --model")
    if (path / made_by).exists():  # a path of another place is seen from the index, or absolute
        return str(path / made_by)
    is_path = Path(made_by).is_absolute() or made_by.startswith(".")
    if is_path and not Path(made_by).exists():
        raise UserError(
            f"the index {path} was made with the model {made_by}, which is not there any more: "
            "name the model with --model"
        )
    return str(made_by)


def load_model(
    path: Path, manifest: Mapping[str, Any]
) -> Embedder | StaticEmbedder | Client | ComposedEncoder:
    """The model that made the index at ``path``, in float32, or as its server has it.

    Raises:
        UserError: as ``model_name``; the model cannot be read.
    """
    return open_encoder(model_name(path, manifest))


def open_encoder(name: str) -> Embedder | StaticEmbedder | Client | ComposedEncoder:
    """A model folder, a hub id, static word vectors, a composed folder or the address of a server: whatever
    makes vectors.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from moembed.client.connection import is_url
    from moembed.client.model import Client
    from moembed.embedder import Embedder
    from moembed.folder.bases import locate_base
    from moembed.folder.modules import is_composed, is_static
    from moembed.inference.static import StaticEmbedder

    if is_url(name):
        return Client(name)
    folder = locate_base(name)
    if is_static(folder):
        return StaticEmbedder.from_pretrained(name)
    if is_composed(folder):
        from moembed.search.composed import read_composed

        return read_composed(folder, open_encoder)
    return Embedder.from_pretrained(folder, dtype="float32")


def searched_space(model: TextEncoder, role: str | None, view: View, wanted: str) -> str:
    """The space that queries of a model may search: ``wanted``, where its folder declares that they may;
    else the one that its own documents live in.

    Args:
        role: that the texts of the index were embedded for.
        view: of the vectors in the index.

    Raises:
        UserError: the index holds longer vectors than the model makes.
    """
    if view.dim is not None and view.dim > model.dim:
        raise UserError(
            f"the index holds vectors of {view.dim} coordinates, and this model makes {model.dim}: re-index "
            "the texts with this model, or search with the model that made the index"
        )
    own = model.space(role=role, view=view)
    if own == wanted:
        return own
    relation: SpaceRelation | None = getattr(model, "relation", None)
    allowed = relation is not None and view.dim and relation.allows(model, wanted, view.dim)
    return wanted if allowed else own


def relation_used(model: TextEncoder, role: str | None, view: View, wanted: str) -> str | None:
    """A sentence, where a search is one of two models: the relation that allows it."""
    if wanted == model.space(role=role, view=view) or wanted != searched_space(model, role, view, wanted):
        return None
    relation: SpaceRelation = model.relation  # type: ignore[attr-defined]
    return (
        f"the documents were embedded by {relation.model} and the query by this model, "
        "which was trained to give its vectors"
    )
