"""Tags of texts, such as their language or their role, by which routers of kind ``tag`` choose experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from moembed.encoding import ROLES
from moembed.model.spec import EncoderSpec
from moembed.moe.router_kinds import missing_tags
from moembed.types import UserError

FindTags = Callable[[list[str]], Sequence[str | None]]  # of texts, such as a detector of languages
TagSource = str | FindTags | None


@dataclass(frozen=True)
class Tags:
    """The tags that the routers of a model know, numbered in the order of their names.

    Attributes:
        default: the tag of texts that come without one; None: such texts are refused.
    """

    names: tuple[str, ...]
    default: str | None = None

    @classmethod
    def of(cls, spec: EncoderSpec) -> Tags | None:
        """None where no router of the model looks at tags; all that do know the same ones."""
        for layer in spec.layers:
            if layer.moe and layer.moe.router.tags:
                return cls(tuple(sorted(layer.moe.router.tags)), layer.moe.router.default_tag)
        return None

    @property
    def by_role(self) -> bool:
        """Whether every tag is a role, as `moembed.encoding.ROLES` names them: then the role is the tag."""
        return set(self.names) <= set(ROLES)

    def numbers(self, tags: Iterable[str | None], missing: str) -> list[int]:
        """The number of every tag; None stands for ``default``.

        Args:
            missing: what to tell where a tag is None and there is no default.

        Raises:
            UserError: a tag that the model does not know; one that is missing.
        """
        number = {name: i for i, name in enumerate(self.names)}
        found = []
        for tag in tags:
            name = self.default if tag is None else tag
            if name is None:
                raise UserError(missing)
            if name not in number:
                raise UserError(self.unknown(name))
            found.append(number[name])
        return found

    def unknown(self, tag: str) -> str:
        """What to tell of a tag that the model does not know."""
        return f"this model has no experts for the tag {tag!r} (known: {', '.join(self.names)})"


def missing_in(spec: EncoderSpec) -> str:
    """What to tell where texts come without a tag that this model needs."""
    return next(missing_tags(x.moe.router) for x in spec.layers if x.moe and x.moe.router.tags)
