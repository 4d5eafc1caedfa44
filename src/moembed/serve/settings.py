"""The settings of a server, and where each came from: a flag, the environment, a file, or the default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from moembed.files import reason
from moembed.types import UserError
from moembed.validation import sentences

PREFIX = "MOEMBED_SERVE_"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"  # where several processes count together, see `serve.metrics`

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def _split(value: Any) -> Any:
    """``a,b`` of the environment as a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


def _keys(value: Any) -> Any:
    """Keys that are given, and are none, would be a server that is open to all by mistake."""
    found = _split(value)
    if isinstance(value, (str, list)) and not found:  # a tuple is the default
        raise ValueError("it is empty: give at least one key, or leave the setting out")
    return found


Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_keys)]


class ServeSettings(BaseSettings):
    """What a server is started with. In the environment: ``MOEMBED_SERVE_PORT`` for ``port``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    model: str = Field(description="A folder, a run folder, a hub id, or minilm.")
    name: str = Field("", description="What clients call the model; default: the last part of its path.")
    index: Path | None = Field(None, description="An index folder, or a run that holds one, for /search.")
    reranker: str | None = Field(
        None, description="A cross-encoder for /rerank, /v1/rerank and /search with rerank."
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0: every one of the machine."
    )
    port: int = Field(8000, ge=0, le=65535, description="0: any free one.")
    workers: int = Field(1, ge=1, le=256, description="Processes that share the port and the model's memory.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where the hardware has it, else float32.")
    allow_pickle: bool = Field(False, description="Read pytorch_model.bin where there is no safetensors.")
    truncate: Literal["error", "truncate", "chunk"] = Field(
        "error", description="What becomes of a text that is too long, where the request does not say."
    )
    allow_any_dim: bool = Field(False, description="Dimensions that the model was not trained for, too.")

    api_keys: Secrets = Field((), description="Bearer keys, one of which every request must bring.")
    api_key_file: Path | None = Field(None, description="A file of such keys, one a line.")
    open_metrics: bool = Field(False, description="/metrics without a key.")
    cors_origins: Words = Field((), description="Origins of other pages that may call; default: none.")
    root_path: str = Field("", description="The path under which a proxy shows this server.")

    max_body_bytes: int = Field(8 << 20, ge=1024, description="Bytes of a request's body.")
    bodies_bytes: int | None = Field(
        None, ge=1024, description="Bytes of all bodies at hand, then 429; default: 8 max_body_bytes."
    )
    max_texts: int = Field(2048, ge=1, description="Texts of a request.")
    request_tokens: int = Field(
        524_288,
        ge=1,
        description="Tokens of a request for vectors; one to /rerank is bounded by max_body_bytes.",
    )
    batch_tokens: int | None = Field(None, ge=1, description="Tokens computed at a time; default: by device.")
    queue_tokens: int | None = Field(
        None, ge=1, description="Tokens that may wait, then 429; default: by device."
    )
    batch_seconds: float = Field(0.05, gt=0, le=60, description="About how long a batch is computed.")
    lanes: int | None = Field(None, ge=1, description="Batches computed at a time; default: by threads.")
    max_age: float = Field(0.1, ge=0, le=60, description="Seconds until a waiting text is due, see the docs.")
    max_wait: float = Field(20, gt=0, le=3600, description="Seconds of work that may wait; then 429.")
    header_seconds: float = Field(
        10, gt=0, le=3600, description="Seconds for the head of a request to arrive."
    )
    body_seconds: float = Field(20, gt=0, le=3600, description="Seconds for its body to arrive.")
    rerank_requests: int = Field(16, ge=1, description="Requests that may wait for the reranker; then 429.")
    request_seconds: float = Field(120, gt=0, le=86400, description="Seconds for the whole answer.")
    keep_alive_seconds: int = Field(30, ge=1, le=3600, description="Seconds that an idle connection is kept.")
    drain_seconds: float = Field(30, ge=0, le=3600, description="Seconds for requests at work, on SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="JSON on stderr.")

    @field_validator("api_keys")
    @classmethod
    def _no_empty_key(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(not key.get_secret_value().strip() for key in keys):
            raise ValueError("a key must not be empty")
        if not all(_can_be_sent(key.get_secret_value().strip()) for key in keys):
            raise ValueError("a key has a space or a character outside ASCII, which a bearer key cannot have")
        return keys

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_name_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(origin.rstrip("/") for origin in origins)

    @field_validator("root_path")
    @classmethod
    def _no_last_slash(cls, path: str) -> str:
        if path and not path.startswith("/"):
            raise ValueError(f"it begins with a slash: write /{path.rstrip('/')}")
        return path.rstrip("/")

    @model_validator(mode="after")
    def _room_for_a_body(self) -> ServeSettings:
        if self.bodies_bytes is not None and self.bodies_bytes < self.max_body_bytes:
            raise ValueError(
                f"bodies_bytes {self.bodies_bytes} is less than the {self.max_body_bytes} that one body may "
                "have: raise it, or lower max_body_bytes"
            )
        return self

    @property
    def served_name(self) -> str:
        """The name that /v1/models lists: ``demo`` for ``runs/demo``."""
        return self.name or _last_part(self.model) or self.model

    @property
    def reranker_name(self) -> str:
        """What clients may call the reranker: ``mine`` for ``runs/mine``."""
        return _last_part(self.reranker or "") or "reranker"

    def keys(self) -> list[str]:
        """Those of ``api_keys`` and those of the file, lines that are empty or begin with ``#`` left out.

        Raises:
            UserError: the file is not there, cannot be read, or holds no key.
        """
        found = [key.get_secret_value().strip() for key in self.api_keys]
        if self.api_key_file is None:
            return found
        try:
            lines = self.api_key_file.read_text(encoding="utf-8-sig").splitlines()  # without Windows' mark
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the keys in {self.api_key_file}: {reason(error)}") from None
        listed = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
        if not listed:
            raise UserError(f"{self.api_key_file} holds no key: write one a line, or leave the setting out")
        for number, key in enumerate(listed, start=1):
            if not _can_be_sent(key):
                raise UserError(
                    f"{self.api_key_file}: key {number} has a space or a character outside ASCII, which a "
                    "bearer key cannot have: choose another"
                )
        return found + listed


def _can_be_sent(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> tuple[ServeSettings, dict[str, str]]:
    """The settings, and by name where each came from: ``flag``, ``environment``, ``file`` or ``default``.

    A flag wins over the environment, that over the file, and that over the default. The file is YAML, or of
    ``NAME=value`` lines if its name ends in ``.env``.

    Raises:
        UserError: a setting that does not exist, or cannot have this value; the file cannot be read.
    """
    known = ServeSettings.model_fields
    layers: dict[str, dict[str, Any]] = {
        "file": _from_file(file) if file else {},
        "environment": EnvSettingsSource(ServeSettings)(),
        "flag": {name: value for name, value in flags.items() if value is not None},
    }
    for name in unknown_variables():
        raise UserError(
            f"the environment sets {name}, which is no setting: unset it, docs/serving.md lists them all"
        )
    merged: dict[str, Any] = {}
    origin = dict.fromkeys(known, "default")
    for source, values in layers.items():
        merged |= values
        origin |= dict.fromkeys(values, source)
    if "model" not in merged:
        raise UserError("name the model to serve: moembed serve MODEL")
    try:
        settings = ServeSettings(**merged)
    except ValidationError as error:
        wrong = "; ".join(sentences(ServeSettings, merged, error))
        raise UserError(f"the settings of the server are wrong: {wrong}") from None
    return settings, origin


def unknown_variables() -> list[str]:
    """Variables of the environment that look like a setting and are none."""
    known = {PREFIX + name.upper() for name in ServeSettings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name.upper() not in known)


def _from_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"there is no file {file} to read settings from")
    try:
        if file.suffix == ".env" or file.name == ".env":
            return dict(DotEnvSettingsSource(ServeSettings, env_file=file)())
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the settings in {file}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold keys with values, such as port: 8000")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise UserError(f"{file} has the key {odd[0]!r}: the names of settings are words, such as port")
    return values


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
