"""What travels between rooms, and the legend of shape letters used in every tensor name.

====  =======================================  ====  =======================================
B     texts in a batch                         E     experts
S     sequence positions of a padded batch     K     experts chosen per token
T     real tokens of a packed batch            L     layers
D     width of a hidden state                  P     routed (token, expert) pairs
H     attention heads                          Q     queries
F     hidden width of a feed-forward block     N     candidates (documents, then negatives)
V     vocabulary                               M     width of an embedding
====  =======================================  ====  =======================================

``hidden_TD`` is a matrix of token states, ``score_QN`` of query-candidate scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class UserError(ValueError):
    """A mistake that the user can correct: the command line prints one sentence and exits with code 2."""


class TruncationWarning(UserWarning):
    """Some texts were longer than the model reads; the message says how many."""


def is_count(value: Any) -> bool:
    """Whether this is a whole number of at least 1, of Python or numpy, and no truth value."""
    return hasattr(value, "__index__") and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True, slots=True)
class Pair:
    """One training example: a query, a document that answers it and any mined hard negatives.

    ``score`` says how alike the two texts are, for losses of scores. ``label`` is the class of both texts and
    ``negative_labels`` are those of the negatives, for losses that look at classes. ``scores`` say how well
    the document and each of the negatives answer the query, for the distillation of scores.
    """

    query: str
    document: str
    negatives: tuple[str, ...] = ()
    score: float | None = None
    label: str | None = None
    negative_labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    def row(self) -> dict[str, Any]:
        """The pair as a row of data, without a score or labels that it does not have."""
        found: dict[str, Any] = {
            "query": self.query, "document": self.document, "negatives": self.negatives
        }  # fmt: skip
        graded = {
            "score": self.score, "label": self.label, "negative_labels": self.negative_labels or None,
            "scores": self.scores or None,
        }  # fmt: skip
        return found | {key: value for key, value in graded.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokenised texts laid end to end, shortest first, without padding.

    ``restore_B[i]`` is the place in the packed order of the caller's text ``i``. ``prompt_B`` says how many
    tokens at the start of each text, in the packed order, are those of its prompt; None: it is not known.
    ``type_T`` is the type of every token, a row of the encoder's table of types; None: all are of the first.
    ``tag_B`` is the number of each text's tag (`moembed.model.tags`), in the packed order; None: they have
    none.
    """

    token_T: Tensor
    length_B: tuple[int, ...]
    restore_B: Tensor
    truncated: int = 0
    prompt_B: tuple[int, ...] | None = None
    type_T: Tensor | None = None
    tag_B: tuple[int, ...] | None = None

    def to(self, device: str) -> Batch:
        type_T = None if self.type_T is None else self.type_T.to(device)
        token_T, restore_B = self.token_T.to(device), self.restore_B.to(device)
        return replace(self, token_T=token_T, restore_B=restore_B, type_T=type_T)


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """What a router may look up of tokens, beside their states: their ids, and the tags of their texts.

    None: it is not known, and a router that needs it refuses.
    """

    token_T: Tensor | None = None
    tag_T: Tensor | None = None


NO_KEYS = TokenKeys()


@dataclass(slots=True)
class RouterStats:
    """Sums over the tokens one MoE layer routed; sums add up over chunks and processes, means do not.

    ``prob_E`` and ``z`` carry gradient: the balance loss and the z-loss are built from them. Of a router that
    does not learn (``learned`` False) they carry none, and no loss is made of them. ``count_E`` are the pairs
    that the router chose; ``dropped`` of them were beyond capacity (None: there is no capacity).
    """

    layer: int
    tokens: int
    count_E: Tensor  # chosen pairs per expert
    prob_E: Tensor  # sum of router probabilities per expert
    z: Tensor  # sum of squared log-sum-exp of the logits
    entropy: Tensor  # sum of the routing entropy, nats
    top_mass: Tensor  # sum of the probability that the chosen experts held
    learned: bool = True  # whether the router has weights of its own
    dropped: Tensor | None = None

    def __add__(self, other: RouterStats) -> RouterStats:
        assert self.layer == other.layer
        parts = [part.dropped for part in (self, other) if part.dropped is not None]
        return RouterStats(
            self.layer,
            self.tokens + other.tokens,
            self.count_E + other.count_E,
            self.prob_E + other.prob_E,
            self.z + other.z,
            self.entropy + other.entropy,
            self.top_mass + other.top_mass,
            self.learned,
            sum(parts[1:], parts[0]) if parts else None,
        )

    def detach(self) -> RouterStats:
        return replace(self, prob_E=self.prob_E.detach(), z=self.z.detach())

    @property
    def load_E(self) -> Tensor:
        """Share of the routed pairs each expert received; sums to 1, ``1/E`` each when balanced."""
        return self.count_E / self.count_E.sum().clamp(min=1)

    @property
    def dead_experts(self) -> int:
        return int((self.count_E == 0).sum())

    def summary(self) -> dict[str, object]:
        """Means per token, ready for a log line."""
        tokens = max(self.tokens, 1)
        return {
            "layer": self.layer,
            "load": [round(float(x), 4) for x in self.load_E],
            "entropy": round(float(self.entropy) / tokens, 4),
            "top_mass": round(float(self.top_mass) / tokens, 4),
            "dead_experts": self.dead_experts,
            **({"dropped": round(self.dropped_share, 4)} if self.dropped is not None else {}),
        }

    @property
    def dropped_share(self) -> float:
        """Share of the chosen pairs that were beyond capacity."""
        return 0.0 if self.dropped is None else float(self.dropped / self.count_E.sum().clamp(min=1))


@dataclass(slots=True)
class Encoded:
    """What the embedder makes of a batch, in the caller's order.

    ``by_depth[l]`` holds the vectors pooled after ``l`` layers; the deepest entry is the model's embedding.
    """

    by_depth: dict[int, Tensor]
    router: list[RouterStats] = field(default_factory=list)

    @property
    def vector_BM(self) -> Tensor:
        return self.by_depth[max(self.by_depth)]


@dataclass(frozen=True, slots=True)
class Hits:
    """Best candidates of every query, best first: row numbers and scores, ``(Q, k)`` int64 and float32."""

    index: np.ndarray
    score: np.ndarray
