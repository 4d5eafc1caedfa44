"""YAML file + dotted overrides -> a strict pydantic model.

``load(TrainConfig, "recipes/finetune.yaml", ["steps=100", "optim.learning_rate=1e-4"])`` reads the file,
applies the overrides from left to right (each value is read as YAML) and validates. ``${NAME}`` and
``${NAME:-default}`` in a text stand for an environment variable. An unknown key is refused together with the
nearest known one. ``dump`` writes the resolved config that is saved with every run, and
``config_hash`` names it in records.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from moembed.types import UserError
from moembed.validation import require_digits, sentences


class Strict(BaseModel):
    """Base of every config: unknown keys are errors, numbers are finite, values cannot be reassigned."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, values: Any) -> Any:
        """``null`` in place of a list, or of keys, that need not be there: it has nothing in it."""
        if not isinstance(values, dict):
            return values
        empty = {name for name, field in cls.model_fields.items() if _is_empty(field)}
        return {key: value for key, value in values.items() if value is not None or key not in empty}

    @property
    def changed_keys(self) -> set[str]:
        """The keys that are not at their default. What was given is no measure: the recipe.yaml of a run
        gives every key."""
        fields = type(self).model_fields
        return {name for name in self.model_fields_set if getattr(self, name) != fields[name].default}


Config = TypeVar("Config", bound=Strict)


def _is_empty(field: FieldInfo) -> bool:
    """Whether a key is at its default a list or a dict with nothing in it."""
    default = field.get_default(call_default_factory=True, validated_data={})
    return isinstance(default, (tuple, list, dict)) and not default


def load(kind: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` (optional), apply ``key.sub=value`` overrides and validate as ``kind``.

    Raises:
        UserError: missing file, broken YAML, an override without ``=``, unknown keys, wrong values, an
            environment variable that is not set.
    """
    values = _read(Path(path)) if path else {}
    for override in overrides:
        key, value = parse_override(override)
        _set(values, key.split("."), value, override)
    return validate(kind, _with_environment(values))


def parse_override(override: str) -> tuple[str, Any]:
    """The dotted key of ``key.sub=value`` and its value, read as YAML.

    Raises:
        UserError: no ``=``, or no key before it; broken YAML.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    if text.startswith("*"):  # a pattern; as YAML it would be the name of a value that nobody has named
        return key, text
    value = _parse(text, override)
    # a recipe has comments, a command line has none: "out=runs/try #2" is a name
    commented = isinstance(value, str) and re.fullmatch(re.escape(value) + r"\s+#.*", text.strip())
    return key, text.strip() if commented else value


def read_values(given: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """The keys of a mapping or of a YAML file, environment variables in place; nothing is checked yet.

    Raises:
        UserError: as ``load``.
    """
    values = copy.deepcopy(dict(given)) if isinstance(given, Mapping) else _read(Path(given))
    return _with_environment(values)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``values`` in which keys are replaced, dotted ones inside others.

    Raises:
        UserError: a dotted key that goes through a value.
    """
    made = copy.deepcopy(dict(values))
    for key, value in changes.items():
        _set(made, str(key).split("."), copy.deepcopy(value), str(key))
    return made


def resolve(kind: type[Config], given: Any, overrides: Mapping[str, Any]) -> Config:
    """What Python callers pass as a config: one of ``kind``, a mapping, or a YAML file; then ``overrides``.

    Keys of ``overrides`` may be dotted, ``{"optim.learning_rate": 1e-4}``.

    Raises:
        UserError: as ``load``.
    """
    if isinstance(given, kind):
        values = _given(given)
    elif isinstance(given, Mapping):
        values = copy.deepcopy(dict(given))
    elif isinstance(given, (str, os.PathLike)):
        values = _read(Path(given))
    else:
        raise UserError(f"a config is a {kind.__name__}, a dict or a YAML file, not a {type(given).__name__}")
    for key, value in overrides.items():
        keys, inner = key.split("."), values
        for part in keys[:-1]:
            if isinstance(inner.get(part), BaseModel):
                inner[part] = _given(inner[part])
            inner = inner[part] if isinstance(inner.get(part), dict) else {}
        _set(values, keys, copy.deepcopy(value), key)  # a later override may reach into it
    return validate(kind, _with_environment(values))


def _given(config: BaseModel) -> dict[str, Any]:
    """The values that were given to a config; what it was not told stays a default."""
    return {name: getattr(config, name) for name in config.model_fields_set}


def validate(kind: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """``kind(**values)`` with pydantic's complaints turned into one sentence of ours.

    Raises:
        UserError: every wrong value with its key, what was given and what is expected; of unknown keys, these
            alone, for the rest may be a consequence.
    """
    try:
        require_digits(values)
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(sentences(kind, values, error))
    except UserError as error:
        problems = str(error)
    raise UserError(f"{where}: {problems}" if where else problems)


def dump(config: Strict) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_hash(config: Strict) -> str:
    """First 12 hex digits of the SHA-256 of the resolved config: equal configs, equal names."""
    return hashlib.sha256(dump(config).encode()).hexdigest()[:12]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such recipe: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    values = _parse(text, str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not the keys of a recipe")
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-4`` as a string; people mean a number. Of two equal keys it drops the first."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if isinstance(key, yaml.ScalarNode) and name in seen and key.value != "<<":
                problem = f"the key {key.value!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(name)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{where} is not valid YAML{place}: {problem}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None
    except ValueError as error:  # a date that is none
        raise UserError(f"{where} is not valid YAML: {error}") from None


def _with_environment(values: dict[str, Any]) -> dict[str, Any]:
    """``_expanded`` values, which an anchor may have put into themselves.

    Raises:
        UserError: it has.
    """
    try:
        expanded: dict[str, Any] = _expanded(values)
    except RecursionError:
        raise UserError("a value holds itself: an anchor (&name) has its alias (*name) inside") from None
    return expanded


def _expanded(value: Any) -> Any:
    """Every ``${NAME}`` and ``${NAME:-default}`` replaced, in texts at any depth, and ``~/`` in front."""
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expanded(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        return value
    text = re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", _variable, value)
    # no shell does it in a YAML file, and a run would land in a folder that is called "~"
    return os.path.expanduser(text) if text.startswith("~/") else text


def _variable(match: re.Match[str]) -> str:
    name, default = match.groups()
    found = os.environ.get(name) or default
    if found is not None:  # "${NAME:-}" is a default, too: nothing
        return found
    raise UserError(f"the environment variable {name}, which the recipe names, is not set")


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        child = values.get(key)
        if child is None:
            child = values[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"override {override!r}: {key!r} is a value, it has no keys of its own")
        values = child
    values[keys[-1]] = value
