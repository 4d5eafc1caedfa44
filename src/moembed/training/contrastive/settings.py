"""What contrastive training can be told: its length, its batches, its loss, what is looked at."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from moembed.config import Strict
from moembed.training.contrastive.schedules import Points, require_in_range
from moembed.training.contrastive.shaping import ShapingConfig
from moembed.training.settings import EvaluateConfig, LoopConfig
from moembed.types import UserError

Kind = Literal["info_nce", "symmetric_info_nce", "triplet"]
TaskType = Literal["retrieval", "sts", "classification", "clustering"]
Share = Annotated[float, Field(ge=0)]  # of a sum of losses
LARGEST_SCALE = 100.0  # 1 / temperature, where it is learned: as in CLIP (Radford et al., arXiv 2103.00020)


class MatryoshkaConfig(Strict):
    """Prefixes of the vector that are trained, and the weight of each (null: 1)."""

    dims: tuple[int, ...] = Field(min_length=1)
    weights: tuple[Share, ...] | None = None

    @model_validator(mode="after")
    def _one_weight_each(self) -> MatryoshkaConfig:
        if min(self.dims) < 1 or (self.weights and len(self.weights) != len(self.dims)):
            raise ValueError("dims are at least 1, and each has one weight")
        return self


class TripletConfig(Strict):
    """``own``: a query learns from its hard negatives, or from the hardest candidate where it has none;
    ``hardest``: always from the hardest candidate. ``margin`` is in cosines."""

    margin: float = Field(default=0.2, ge=0, le=2)
    negatives: Literal["own", "hardest"] = "own"


class BinaryConfig(Strict):
    """Signs of the first ``bits`` coordinates (null: all) that are trained beside the floats: see
    `moembed.losses.binary`. ``weight`` is that of their loss, at the temperature of the floats; ``balance``
    and ``decorrelation`` are those of the terms that keep bits apart."""

    bits: int | None = Field(default=None, ge=1)
    weight: float = Field(default=1.0, ge=0)
    balance: float = Field(default=0.1, ge=0)
    decorrelation: float = Field(default=0.1, ge=0)


class LossConfig(ShapingConfig):
    """The loss of a step: ``kind``, over ``matryoshka`` prefixes and ``depths``, and the router's terms.

    ``learn_temperature`` starts at ``temperature`` and never goes below 0.01; ``per_dim``: one temperature
    for each of the ``matryoshka`` dims. ``queue`` is a number of past document vectors that are negatives
    too: see `moembed.training.contrastive.queue`. ``depths`` maps numbers of layers to weights; the last
    layer must be among them. ``balance_window`` is the number of steps over which
    the expert counts of the balance loss run: with batches from one source each, an expert may be right to
    rest for a step. ``bias_rate`` steers the choice of experts by a bias instead of a loss. ``weight``,
    ``mask``, ``directions``, ``mixing`` and ``in_batch`` say which scores there are and how much each counts:
    see `moembed.training.contrastive.shaping`. ``maxsim`` is for models with ``pooling: tokens``: a score is
    the ``mean`` (null) or the ``sum`` over the query's tokens of each one's nearest token of the document.
    """

    kind: Kind = "info_nce"
    triplet: TripletConfig | None = None
    maxsim: Literal["mean", "sum"] | None = None
    temperature: float = Field(default=0.02, gt=0)
    learn_temperature: bool | Literal["per_dim"] = False
    matryoshka: MatryoshkaConfig | None = None
    depths: dict[int, Share] | None = Field(default=None, min_length=1)
    binary: BinaryConfig | None = None
    queue: int = Field(default=0, ge=0, le=10_000_000)  # vectors; 0: none
    balance: float = Field(default=0.01, ge=0)  # coefficient of the load-balancing loss
    balance_window: int = Field(default=1, ge=1)
    bias_rate: float = Field(default=0.0, ge=0)  # the paper of this method uses 0.001
    z: float = Field(default=0.0, ge=0)  # coefficient of the router z-loss

    @model_validator(mode="after")
    def _starts_within_the_clamp(self) -> LossConfig:
        if self.learn_temperature and self.temperature < 1 / LARGEST_SCALE:
            raise ValueError(f"a learned temperature stays at {1 / LARGEST_SCALE} or above; start there")
        if self.learn_temperature == "per_dim" and self.matryoshka is None:
            raise ValueError("learn_temperature per_dim needs the dims of loss.matryoshka; else say true")
        if self.queue and not self.in_batch:
            raise ValueError("queue adds negatives of other queries, and in_batch is false: take one out")
        if self.learn_temperature == "per_dim" and self.binary is not None:
            raise ValueError("loss.binary has no temperature of its own: learn_temperature is true or false")
        return self


class GuideConfig(Strict):
    """A model whose scores say which candidates are no negatives: those above its score of the positive, less
    ``margin``, or ``relative`` less ``margin`` times that score.

    ``cache``: a folder that keeps its vectors for this run and later ones.
    """

    model: str
    margin: float = Field(default=0.0, ge=0)
    relative: bool = False
    cache: str | None = None


class ScoreDistillConfig(Strict):
    """Models whose ranking is learned: ``loss + weight * KL(teachers || student)`` over candidates of every
    query, see `moembed.losses.score_distillation`.

    ``candidates``: ``batch``, all documents and hard negatives of the step; ``own``, the document and hard
    negatives of the query alone. The scores of each teacher are brought to one scale query by query as
    ``normalize`` says, averaged and divided by ``temperature``; the student's cosines are divided by
    ``student_temperature`` (null: that of the loss, as it is at that step). ``cache``: a folder that keeps
    the vectors of all teachers.

    ``teachers`` null: the data says the scores, in the column that ``scores`` of each source names; they rank
    the query's own candidates.
    """

    teachers: tuple[str, ...] | None = Field(default=None, min_length=1)
    weight: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    student_temperature: float | None = Field(default=None, gt=0)
    normalize: Literal["z", "min_max", "none"] = "z"
    candidates: Literal["batch", "own"] = "batch"
    cache: str | None = None

    @field_validator("teachers", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _scores_of_the_data(self) -> ScoreDistillConfig:
        if self.teachers is None and self.candidates == "batch":
            raise ValueError(
                "name teachers, or learn the scores of the data, which rank the query's own document and "
                "hard negatives: then set candidates to own"
            )
        return self


class ItemPairsConfig(Strict):
    """Another space whose scores of pairs of items are learned: ``loss + weight * mean (cos - score)^2``.

    Items are the documents and hard negatives of a batch. Their score in the other space is the cosine of
    their vectors there: those of the model ``teacher``, or rows of the .npy file ``vectors``, row i of which
    is the vector of the text in ``column`` of row i of ``items``; texts that are not there take no part. The
    student's cosines are those of its full vectors behind a projection to ``dim`` coordinates (null: as many
    as it has), which is learned, begins as the first ``dim`` coordinates and is no part of the model.
    ``cache``: a folder that keeps the vectors of ``teacher``.
    """

    teacher: str | None = None
    vectors: str | None = None
    items: str | None = None
    column: str = "text"
    weight: float = Field(default=1.0, gt=0)
    dim: int | None = Field(default=None, ge=1)
    cache: str | None = None

    @model_validator(mode="after")
    def _one_space(self) -> ItemPairsConfig:
        if bool(self.teacher) == bool(self.vectors):
            raise ValueError("give a teacher, or vectors with items, not both and not none")
        if bool(self.vectors) != bool(self.items):
            raise ValueError("vectors and items go together: row i of one is row i of the other")
        if self.cache and not self.teacher:
            raise ValueError("cache keeps the vectors of a teacher; vectors are there already: leave it out")
        return self


class SourceOptions(Strict):
    """What one source may do in its own way.

    ``task_type`` says what its pairs teach: ``retrieval``, a query finds its document; ``sts``, pairs with a
    score, for CoSENT at ``temperature`` (null: 0.05); ``classification`` and ``clustering``, two texts of one
    label, no text of which is a negative of another one.

    ``query_prompt`` and ``document_prompt`` name prompts of the model; null: those of the two roles, of other
    tasks than retrieval that of the task; "": no prompt. ``loss`` replaces ``loss.kind``:
    ``symmetric_info_nce`` suits pairs in which either text could be the query.

    For models that choose experts by a tag of the text: ``tag`` is that of all texts of the source,
    ``document_tag`` that of its documents and negatives where it is another; ``tag_by`` takes the label
    ``language`` or ``group`` of each pair. Tags that are roles need none of them.
    """

    task_type: TaskType = "retrieval"
    temperature: float | None = Field(default=None, gt=0)
    query_prompt: str | None = None
    document_prompt: str | None = None
    loss: Kind | None = None
    tag: str | None = None
    document_tag: str | None = None
    tag_by: Literal["language", "group"] | None = None

    @model_validator(mode="after")
    def _one_way_to_tag(self) -> SourceOptions:
        if self.tag_by and (self.tag or self.document_tag):
            raise ValueError("give tag (and document_tag), or tag_by, not both")
        if self.document_tag and not self.tag:
            raise ValueError("document_tag is for sources whose queries have another tag: give tag too")
        return self

    @model_validator(mode="after")
    def _loss_of_the_task(self) -> SourceOptions:
        if self.task_type == "sts" and self.loss:
            raise ValueError(f"pairs of task_type sts have the loss CoSENT, not {self.loss}: leave loss out")
        if self.task_type != "sts" and self.temperature:
            raise ValueError(
                "temperature of a source is CoSENT's, for task_type sts; the others have loss.temperature"
            )
        return self


class ContrastiveConfig(LoopConfig):
    """How long, how large, how fast. Exactly one of ``steps``, ``epochs`` and ``minutes`` ends the run."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=256, ge=2)  # pairs per step, all processes together
    chunk_tokens: int = Field(default=16384, ge=1)  # tokens computed at a time: memory, not the result
    graph_tokens: int | None = Field(default=None, ge=1)  # of chunks embedded once; None: chunk_tokens
    query_length: int = Field(default=64, ge=3)
    document_length: int = Field(default=256, ge=3)
    negatives: int | None = Field(default=None, ge=0)  # hard negatives used per pair; None: all of them
    loss: LossConfig = LossConfig()
    schedules: dict[str, Points] = Field(default={})  # see `moembed.training.contrastive.schedules`
    guide: GuideConfig | None = None
    distill: ScoreDistillConfig | None = None
    item_pairs: ItemPairsConfig | None = None
    workers: int = Field(default=1, ge=0)  # threads that tokenise ahead; 0: in the loop itself
    held_out: float = Field(default=0.0, ge=0, lt=1)  # share of each source, its last rows, never trained on
    evaluate_every: int = Field(default=500, ge=1)  # steps between two looks at the held-out loss
    evaluate: EvaluateConfig | None = None
    diagnose_every: int = Field(default=10, ge=1)  # steps between two looks at the routing by role

    @model_validator(mode="after")
    def _one_end(self) -> ContrastiveConfig:
        if sum(end is not None for end in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError("give exactly one of steps, epochs and minutes")
        # between two points of a schedule there is no 0 unless one of them is 0
        none = "negatives is 0" if self.negatives == 0 else ""
        if 0 in self.schedules.get("negatives", {}).values():
            none = "the schedule of negatives has the value 0"
        if none and self.distill and self.distill.candidates == "own":
            raise ValueError(f"distill.candidates own ranks a query's hard negatives, and {none}")
        if none and not self.loss.in_batch:
            raise ValueError(f"loss.in_batch is false and {none}: there would be no negative at all")
        require_in_range(self)
        return self


Config = TypeVar("Config", bound=ContrastiveConfig)


def fit_lengths(config: Config, positions: int, max_length: int) -> tuple[Config, int, list[str]]:
    """Bring ``query_length`` and ``document_length`` together with what the model reads.

    A length that was asked for is used, up to the positions there are. A default is lowered to what the model
    reads.

    Args:
        positions: the longest text the weights have positions for, in tokens.
        max_length: where the model cuts a text so far.

    Returns:
        The config as it will run, where the model cuts a text from now on, and sentences about what changed.

    Raises:
        UserError: a length that was asked for is more than there are positions.
    """
    keys = ("query_length", "document_length")
    asked = {key: getattr(config, key) for key in keys if key in config.model_fields_set}
    for key, length in asked.items():
        if length > positions:
            raise UserError(f"{key} is {length}, but the model has {positions} positions; lower {key}")
    longest = max([max_length, *asked.values()])
    notes = []
    if longest > max_length:
        notes.append(f"the model cut texts at {max_length} tokens; from now on it reads {longest}")
    lowered = {key: longest for key in keys if getattr(config, key) > longest}
    for key in lowered:
        notes.append(f"{key} is {longest}, not {getattr(config, key)}: the model cuts texts there")
    return config.model_copy(update=lowered), longest, notes
