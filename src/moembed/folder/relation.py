"""``space_relation.json``: whose documents the queries of a model may search, beside those of its own."""

from __future__ import annotations

from pathlib import Path

from moembed.encoding import SpaceRelation
from moembed.files import read_json, write_json
from moembed.types import UserError

RELATION = "space_relation.json"


def read_relation(folder: Path) -> SpaceRelation | None:
    """None where the folder declares none.

    Raises:
        UserError: a damaged file.
    """
    file = folder / RELATION
    if not file.exists():
        return None
    values = read_json(file)
    queries, documents, model = (values.get(key) for key in ("queries", "documents", "model"))
    whole = isinstance(queries, str) and isinstance(model, str) and isinstance(documents, dict)
    if not whole or not all(type(dim) is int and dim > 0 for dim in documents.values()):
        raise UserError(
            f"{file} must name a space of queries, the sizes of spaces of documents, and a model: "
            "copy it again, or delete it"
        )
    return SpaceRelation(queries, documents, model)


def write_relation(folder: Path, relation: SpaceRelation) -> None:
    values = {"queries": relation.queries, "documents": dict(relation.documents), "model": relation.model}
    write_json(folder / RELATION, values)
