"""Who writes the texts: a chat endpoint (`moembed.data.synth.endpoint`) or a Python callable."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Protocol

from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class Question:
    """One request; what is None is left to the generator."""

    system: str
    prompt: str
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None

    def key(self, generator: Generator) -> str:
        """32 hex digits: the same question to the same generator and model."""
        values = json.dumps([generator.name, generator.model, *asdict(self).values()])
        return blake2b(values.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What was written, by which model, why it ended (``length``: cut off), and tokens read and written."""

    text: str
    model: str
    finish: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


class RefusedError(Exception):
    """The generator does not answer this question, and may well answer others."""


class Generator(Protocol):
    """Answers questions; ``name`` and ``model`` stand in the provenance of every row."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def at_once(self) -> int:
        """Questions it takes at one time."""

    def answer(self, question: Question) -> Answer:
        """Raises RefusedError: no answer to this one. UserError: no answer to any."""

    def stop(self) -> None:
        """Wait for nothing more; called from another thread."""

    def close(self) -> None: ...


class CallableGenerator:
    """``module:name``, a function of a prompt that gives a text, called by one thread.

    The system message stands in front of the prompt. ``temperature``, ``seed`` and ``max_tokens`` are given
    by name to a function that takes them; ``ignored`` names those it does not take.
    """

    at_once = 1

    def __init__(self, name: str) -> None:
        self.name, self.model = name, ""
        self._function = _found(name)
        try:
            taken = list(inspect.signature(self._function).parameters.values())
        except (TypeError, ValueError):  # written in C: it tells nothing
            taken = []
        every = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken)
        names = {one.name for one in taken}
        options = ("temperature", "seed", "max_tokens")
        self._takes = [option for option in options if every or option in names]
        self.ignored = [option for option in options if option not in self._takes]

    def answer(self, question: Question) -> Answer:
        options = {name: value for name in self._takes if (value := getattr(question, name)) is not None}
        prompt = f"{question.system}\n\n{question.prompt}" if question.system else question.prompt
        try:
            text = self._function(prompt, **options)
        except Exception as error:  # whatever a function of somebody else raises
            raise UserError(
                f"the generator {self.name} failed ({type(error).__name__}: {' '.join(str(error).split())})"
            ) from error
        if not isinstance(text, str):
            raise UserError(f"{self.name} gave a {type(text).__name__}: it must give a text (str)")
        return Answer(text, self.model)

    def stop(self) -> None:
        return

    def close(self) -> None:
        return


def _found(name: str) -> Callable[..., Any]:
    """The function of ``module:name``; modules of the working directory are found too."""
    module, _, path = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever a module of somebody else raises
        told = " ".join(str(error).split())
        raise UserError(f"cannot import the generator {name} ({type(error).__name__}: {told})") from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(f"{module} has no function {path}: a generator is module:function")
    function: Callable[..., Any] = found
    return function


def is_callable_name(name: str) -> bool:
    """Whether a name has the form ``module:function``."""
    module, colon, function = name.partition(":")
    parts = [*module.split("."), *function.split(".")]
    return bool(colon) and all(map(str.isidentifier, parts))
