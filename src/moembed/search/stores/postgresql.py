"""A table of PostgreSQL with pgvector: ``id``, ``text``, ``metadata`` (jsonb) and ``embedding``.

Everything is written in one transaction: others see the rows before it or all after it. There is no
approximate index; docs/search.md has the statement that makes one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from moembed.search.stores.store import StoredRow, require_condition, require_space
from moembed.search.where import Where
from moembed.search.where_sql import Postgres, as_sql
from moembed.types import UserError

_PAGE = 10_000  # ids asked for at a time
_WIDEST = 16_000  # coordinates of pgvector's type vector
# from a vector of zeros, of a text without a token, pgvector gives NaN: its cosine with all others is 0
_DISTANCE = "COALESCE(NULLIF(embedding <=> %s, 'NaN'), 1)"


class PostgresStore:
    """A `moembed.search.stores.store.VectorStore`.

    Args:
        url: ``postgresql://user:password@host:port/database``, as libpq reads it; what is left out comes from
            libpq's environment variables (PGPASSWORD, …) and files.
        name: of the table, in the schema that the search path of the user puts first.
    """

    def __init__(self, url: str, name: str) -> None:
        try:
            import psycopg
            from pgvector.psycopg import register_vector
            from psycopg import sql
        except ImportError:
            raise UserError("PostgreSQL needs its client: pip install 'moembed[pgvector]'") from None
        self.where = f"PostgreSQL, table {name}"
        self._name, self._table = name, sql.Identifier(name)
        with self._one_sentence():
            self._connection = psycopg.connect(url, connect_timeout=10)
            info = self._connection.info
            self.where = f"PostgreSQL {info.host}:{info.port}/{info.dbname}, table {name}"
            self._require_pgvector()
            register_vector(self._connection)

    def _require_pgvector(self) -> None:
        import psycopg

        found = self._connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone()
        if found:
            return
        try:
            self._connection.execute("CREATE EXTENSION vector")
        except psycopg.Error as error:
            raise UserError(
                f"{self.where}: the database has no pgvector ({_first_line(error)}): install it, and let an "
                "administrator say CREATE EXTENSION vector"
            ) from None

    def prepare(self, dim: int, space: str) -> None:
        """See `VectorStore`; the space stands in the comment of the table."""
        from psycopg import sql

        if dim > _WIDEST:
            raise UserError(f"pgvector holds vectors of {_WIDEST} coordinates at most, these have {dim}")
        with self._one_sentence():
            there = self._connection.execute("SELECT to_regclass(quote_ident(%s))", [self._name]).fetchone()
            if there == (None,):
                self._run(
                    "CREATE TABLE {table} (id text PRIMARY KEY, text text NOT NULL, metadata jsonb NOT NULL, "
                    "embedding vector({dim}) NOT NULL)",
                    dim=sql.Literal(dim),
                )
                facts = json.dumps({"made_by": "moembed", "space": space})
                self._run("COMMENT ON TABLE {table} IS {facts}", facts=sql.Literal(facts))
            # two that write wait for one another; whoever reads does not
            self._run("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            query = "SELECT obj_description(to_regclass(quote_ident(%s)), 'pg_class')"
            (comment,) = self._connection.execute(query, [self._name]).fetchone() or (None,)
            require_space(self.where, _space(comment), space)
            self._run("CREATE TEMPORARY TABLE pushed (LIKE {table}) ON COMMIT DROP")

    def upsert(self, rows: Sequence[StoredRow]) -> int:
        """See `VectorStore`."""
        from psycopg.types.json import Jsonb

        for row in rows:
            if "\0" in row.text or "\\u0000" in json.dumps(row.metadata):
                raise UserError(f"row {row.id!r} holds the character NUL, which PostgreSQL cannot store")
        with self._one_sentence(), self._connection.cursor() as cursor:
            columns = "(id, text, metadata, embedding)"
            with cursor.copy(f"COPY pushed {columns} FROM STDIN WITH (FORMAT BINARY)") as copy:
                copy.set_types(["text", "text", "jsonb", "vector"])
                for row in rows:
                    copy.write_row((row.id, row.text, Jsonb(dict(row.metadata)), row.vector_M))
            written = self._run(
                f"INSERT INTO {{table}} AS old {columns} SELECT id, text, metadata, embedding FROM pushed "
                "ON CONFLICT (id) DO UPDATE SET text = excluded.text, metadata = excluded.metadata, "
                "embedding = excluded.embedding WHERE (old.text, old.metadata, old.embedding) "
                "IS DISTINCT FROM (excluded.text, excluded.metadata, excluded.embedding)"
            ).rowcount
            cursor.execute("TRUNCATE pushed")
        return int(written)

    def ids(self) -> Iterator[str]:
        """See `VectorStore`."""
        from psycopg import sql

        with self._one_sentence(), self._connection.cursor(name="moembed_ids") as cursor:
            cursor.itersize = _PAGE
            cursor.execute(sql.SQL("SELECT id FROM {table}").format(table=self._table))
            for (name,) in cursor:
                yield name

    def delete(self, ids: Sequence[str]) -> None:
        """See `VectorStore`."""
        with self._one_sentence():
            self._run("DELETE FROM {table} WHERE id = ANY(%s)", [list(ids)])

    def nearest(
        self, vector_M: np.ndarray, k: int, where: Where | None = None, kinds: Mapping[str, str] | None = None
    ) -> list[tuple[str, float]]:
        """See `VectorStore`."""
        from psycopg import sql

        known = require_condition(where, kinds)
        condition, values = ("true", []) if where is None else as_sql(where, known, Postgres())
        with self._one_sentence():
            self._connection.execute("SET LOCAL enable_indexscan = off")  # every row, none by approximation
            found = self._run(
                "SELECT id, 1 - {distance} FROM {table} WHERE {condition} ORDER BY {distance} LIMIT %s",
                [vector_M, *values, vector_M, k],
                condition=sql.SQL(condition),
                distance=sql.SQL(_DISTANCE),
            ).fetchall()
        return [(name, float(cosine)) for name, cosine in found]

    def commit(self) -> None:
        """See `VectorStore`."""
        with self._one_sentence():
            self._connection.commit()

    def close(self) -> None:
        """See `VectorStore`."""
        self._connection.close()

    def _run(self, statement: str, values: Sequence[Any] = (), **parts: Any) -> Any:
        from psycopg import sql

        query = sql.SQL(statement).format(table=self._table, **parts)
        return self._connection.execute(query, values or None)

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            raise UserError(f"{self.where}: {_first_line(error)}") from None


def _space(comment: str | None) -> str | None:
    """What the comment of a table says of its space; None of a table that is not ours."""
    try:
        facts = json.loads(comment or "")
    except ValueError:
        return None
    return facts.get("space") if isinstance(facts, dict) and facts.get("made_by") == "moembed" else None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
