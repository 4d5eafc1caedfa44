"""How tokens meet experts: the keys of a router."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from moembed.config import Strict


class RouterConfig(Strict):
    """How tokens meet experts; `moembed.moe.router_kinds` says what each ``kind`` does.

    Of routers that learn: ``normalize`` divides the chosen weights of a token by their p-norm (1: they sum to
    1); None keeps the raw probabilities, as in arXiv 2502.07972. ``jitter`` multiplies the router's input by
    uniform noise in [1 - jitter, 1 + jitter] while training. ``selection_bias`` adds to the probabilities of
    each expert a bias that takes part in the choice and in nothing else; training moves it to balance the
    load (Wang et al., arXiv 2408.15664).

    ``capacity_factor`` limits, while training, how many tokens of a text an expert takes, where tokens choose
    (`moembed.moe.capacity`); None drops no token. ``capacity_at_inference`` keeps the limit in inference.

    Of ``tag``: ``tags`` names the ``top_k`` experts of every tag. A list stands for groups that follow one
    another: ``[[de, nl], fr]`` gives the first ``top_k`` experts to de and nl, the next ones to fr. Here
    ``top_k`` is as many as ``tags`` says, for a list 1, unless it is given.
    ``default_tag`` is the tag of texts that come without one; None: such texts are refused.

    Of ``centroid``: ``similarity`` of a state and the centroids, divided by ``temperature``; ``trainable``
    false leaves the centroids where they are. Of ``hash``: ``seed``, another one for other experts.
    """

    kind: Literal["token_choice", "expert_choice", "centroid", "tag", "hash"] = "token_choice"
    top_k: int = Field(default=2, ge=1)
    normalize: float | None = Field(default=1.0, gt=0)
    jitter: float = Field(default=0.0, ge=0, lt=1)
    selection_bias: bool = False
    tags: dict[str, tuple[int, ...]] = Field(default={})
    default_tag: str | None = None
    similarity: Literal["cosine", "dot"] = "cosine"
    temperature: float = Field(default=1.0, gt=0)
    trainable: bool = True
    seed: int = Field(default=0, ge=0, lt=2**32)
    capacity_factor: float | None = Field(default=None, gt=0)
    capacity_at_inference: bool = False

    @model_validator(mode="before")
    @classmethod
    def _groups_follow_one_another(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("tags"):
            return values
        groups = values["tags"]
        if isinstance(groups, dict):
            first = next(iter(groups.values()))
            return {"top_k": len(first)} | values if isinstance(first, (list, tuple)) and first else values
        if not isinstance(groups, (list, tuple)):
            return values
        top_k = values.get("top_k", 1)
        table: dict[Any, list[int]] = {}
        for number, group in enumerate(groups):
            for tag in [group] if isinstance(group, str) else group:
                if tag in table:
                    raise ValueError(f"the tag {tag!r} is in two groups")
                table[tag] = [number * top_k + place for place in range(top_k)]
        return values | {"tags": table, "top_k": top_k}

    @field_validator("tags")
    @classmethod
    def _experts_are_numbered(cls, tags: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for tag, experts in tags.items():
            if not tag.strip():
                raise ValueError("a tag has a name")
            if len(set(experts)) < len(experts) or min(experts, default=0) < 0:
                raise ValueError(f"the experts of the tag {tag!r} are different numbers from 0 on")
        return tags

    @model_validator(mode="after")
    def _fits_its_kind(self) -> RouterConfig:
        if self.selection_bias and self.kind != "token_choice":
            raise ValueError("selection_bias is for token_choice: no other router is balanced by a bias")
        if self.capacity_factor is not None and self.kind not in ("token_choice", "centroid"):
            raise ValueError(
                f"capacity_factor is for routers whose tokens choose by probability, not for {self.kind}"
            )
        if self.capacity_at_inference and self.capacity_factor is None:
            raise ValueError("capacity_at_inference needs a capacity_factor: give one, or leave it out")
        if (self.kind == "tag") != bool(self.tags):
            raise ValueError("tags say which experts each tag has; a router of kind tag needs them")
        for kind, keys in _OF_KIND.items():
            changed = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if kind != self.kind and changed:
                raise ValueError(f"{changed[0]} is for a router of kind {kind}, and this one is {self.kind}")
        if self.default_tag is not None and self.default_tag not in self.tags:
            raise ValueError(f"default_tag {self.default_tag!r} is none of the tags {', '.join(self.tags)}")
        if wrong := [tag for tag, experts in self.tags.items() if len(experts) != self.top_k]:
            raise ValueError(f"the tag {wrong[0]!r} needs {self.top_k} experts, as top_k says")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Later keys are written where a router uses them: names made of one that does not stay."""
        values = write(self)
        fields = type(self).model_fields
        return {key: value for key, value in values.items() if key in _FIRST or value != fields[key].default}


_FIRST = {"kind", "top_k", "normalize", "jitter"}
_OF_KIND = {"centroid": ("similarity", "temperature", "trainable"), "hash": ("seed",)}
