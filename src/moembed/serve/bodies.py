"""Bodies of requests: what fields there are, and one sentence for what is wrong in one.

Only texts and small values are checked here. JSON is read by orjson, which refuses NaN, invalid UTF-8, half
of a surrogate pair and deep nesting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError, WithJsonSchema
from starlette.requests import Request

from moembed.serve.errors import RequestError
from moembed.serve.records import header
from moembed.serve.replies import EncodingFormat
from moembed.serve.state import Truncate, state_of
from moembed.validation import sentences

Inputs = list[str] | list[list[int]]

_STRING: dict[str, Any] = {"type": "string"}
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_INPUTS_SCHEMA: dict[str, Any] = {
    "description": "One text, several, the token ids of one, or those of several.",
    "anyOf": [
        _STRING,
        {"type": "array", "items": _STRING, "minItems": 1},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1},
    ],
}
_TEXTS_SCHEMA: dict[str, Any] = {
    "description": "One text, or several.",
    "anyOf": [_STRING, {"type": "array", "items": _STRING, "minItems": 1}],
}
_TAG_SCHEMA: dict[str, Any] = {
    "anyOf": [
        _STRING,
        {"type": "array", "items": {"anyOf": [_STRING, {"type": "null"}]}, "minItems": 1},
        {"type": "null"},
    ],
}
TAG = "The tag of the texts, or a list of one each, for models that choose experts by it (/info: tags)."
# Cohere's words for what texts are embedded for, the shorter ones of others, and our roles.
INPUT_TYPES = {
    "search_query": "query",
    "query": "query",
    "search_document": "document",
    "document": "document",
    "passage": "document",
    "classification": "classification",
    "clustering": "clustering",
}
InputType = Literal[
    "search_query", "query", "search_document", "document", "passage", "classification", "clustering"
]


def _inputs(value: Any) -> Inputs:
    """Any of the four forms as a list of texts or a list of token rows."""
    expected = "a text, a list of texts, the token ids of a text, or a list of such"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"it must be {expected}")
    if not value:
        raise ValueError("it is an empty list: send at least one text")
    if all(type(item) is str for item in value):
        return value
    if all(type(item) is int for item in value):
        return [_token_ids(value, "")]
    if all(type(item) is list for item in value):
        return [_token_ids(row, f" of entry {number}") for number, row in enumerate(value)]
    raise ValueError(f"it must be {expected}, and not a mixture of them")


def _token_ids(row: list[Any], where: str) -> list[int]:
    if not row:
        raise ValueError(f"the list of token ids{where} is empty")
    if not all(type(item) is int and 0 <= item < 1 << 31 for item in row):
        raise ValueError(f"the token ids{where} must be whole numbers of at least 0")
    return row


def _texts(value: Any) -> list[str]:
    found = _inputs(value)
    if not isinstance(found[0], str):
        raise ValueError("it must be a text, or a list of texts")
    return found


AnyInputs = Annotated[Any, AfterValidator(_inputs), WithJsonSchema(_INPUTS_SCHEMA)]
AnyTexts = Annotated[Any, AfterValidator(_texts), WithJsonSchema(_TEXTS_SCHEMA)]


def _tag(value: Any) -> Any:
    """A list may hold None, of a text that has no tag."""
    known = isinstance(value, list) and all(item is None or isinstance(item, str) for item in value)
    if value is None or isinstance(value, str) or (known and value):
        return value
    raise ValueError("it must be a tag, or a list with a tag of each text")


AnyTag = Annotated[Any, AfterValidator(_tag), WithJsonSchema(_TAG_SCHEMA)]


def _condition(value: Any) -> Any:
    """A condition may be no longer than people write: every comparison reads a whole column."""
    try:
        size = len(orjson.dumps(value))
    except orjson.JSONEncodeError:  # it writes less deep than it reads
        raise ValueError("its conditions stand too deep inside one another") from None
    if size > _LONGEST_CONDITION:
        raise ValueError(f"it is longer than {_LONGEST_CONDITION} bytes: ask for less at once")
    return value


_LONGEST_CONDITION = 10_000
_LONGEST_PROMPT = 20_000  # characters; some are kept, and each is read once for every text
_MOST_KEYS = 64
# Many of one request's texts are wrong at once, and one sentence says so.
Texts = Annotated[list[str], FailFast(), Field(min_length=1)]
Condition = Annotated[str | dict[str, Any] | None, AfterValidator(_condition)]


class Body(BaseModel):
    """A body that says no more than it should: unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EmbeddingsBody(Body):
    """OpenAI's, and beside it `input_type` (Cohere's), `prompt_name`, `prompt`, `tag` and `truncate`."""

    input: AnyInputs
    model: str | None = Field(None, description="The served model; default: the one there is.")
    encoding_format: EncodingFormat | None = "float"  # some clients send null
    dimensions: int | None = Field(None, ge=1, description="A size the model was trained for (/info).")
    user: str | None = Field(None, description="Accepted, as clients send it, and not used.")
    input_type: InputType | None = Field(None, description="Puts the model's prompt for it in front.")
    prompt_name: str | None = Field(None, description="Puts the model's prompt of this name in front.")
    prompt: str | None = Field(
        None, max_length=_LONGEST_PROMPT, description="Puts this text in front, whatever the model's prompts."
    )
    tag: AnyTag = Field(None, description=TAG)
    truncate: Truncate | None = Field(
        None, description="A text that is too long: refuse it, cut it, or average over its chunks."
    )


class EmbedBody(Body):
    """TEI's."""

    inputs: AnyInputs
    truncate: bool | None = Field(None, description="Cut texts that are too long; else they are refused.")
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    normalize: bool | None = Field(None, description="Vectors have length 1; false is refused.")
    prompt_name: str | None = None
    tag: AnyTag = Field(None, description=TAG)
    dimensions: int | None = Field(None, ge=1)


class SimilarityInputs(Body):
    source_sentence: str
    sentences: Texts


class SimilarityParameters(Body):
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None
    tag: AnyTag = Field(None, description=TAG)


class SimilarityBody(Body):
    """TEI's."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeBody(Body):
    """TEI's."""

    inputs: AnyTexts
    add_special_tokens: bool = True
    prompt_name: str | None = None
    prompt: str | None = Field(
        None,
        max_length=_LONGEST_PROMPT,
        description="Our own: this text in front, not a prompt's name.",
    )


class SpaceBody(Body):
    """Vectors that somebody will ask for, without their texts."""

    model: str | None = None
    input_type: InputType | None = None
    prompt_name: str | None = None
    prompt: str | None = Field(None, max_length=_LONGEST_PROMPT)
    tag: AnyTag = Field(None, description=TAG)
    dimensions: int | None = Field(None, ge=1)


class RerankBody(Body):
    """TEI's."""

    query: str
    texts: Texts
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    raw_scores: bool = False
    return_text: bool = False


class RankDocument(Body):
    text: str


class RankBody(Body):
    """Cohere's, and beside it `truncate`."""

    query: str
    documents: Annotated[list[str | RankDocument], FailFast(), Field(min_length=1)] = Field(
        description="Texts, or objects with a text."
    )
    model: str | None = Field(None, description="The served reranker; default: the one there is.")
    top_n: int | None = Field(None, ge=1, description="How many to return; default: all.")
    return_documents: bool | None = Field(None, description="Give the texts back as well.")
    truncate: bool | None = Field(None, description="Cut pairs that are too long; else they are refused.")


class SearchBody(Body):
    """A search of the index that the server was started with."""

    query: AnyTexts = Field(description="A question, or several.")
    k: int = Field(10, ge=1, le=1000)
    where: Condition = Field(None, description="A condition on columns: lang = 'de' and year >= 2010.")
    tag: AnyTag = Field(None, description=TAG)
    hybrid: bool = Field(False, description="Words (BM25) and vectors together.")
    weight: float | None = Field(None, ge=0, le=1, description="What vectors count in it; default: by ranks.")
    dimensions: int | None = Field(None, ge=1, description="Compare the first coordinates alone.")
    rerank: bool = Field(False, description="Order the results with the reranker.")


class InspectBody(Body):
    """One text; its tokens, and the experts that each of them chose, are the answer."""

    text: str
    input_type: InputType | None = Field(None, description="Puts the model's prompt for it in front.")
    prompt_name: str | None = Field(None, description="Puts the model's prompt of this name in front.")
    tag: str | None = Field(None, description="Of the text, for models that choose experts by it.")


BODIES: tuple[type[Body], ...] = (
    EmbeddingsBody, EmbedBody, SimilarityBody, TokenizeBody, RerankBody, RankBody, SearchBody, SpaceBody,
    InspectBody,
)  # fmt: skip

_Kind = TypeVar("_Kind", bound=Body)


async def read_body(request: Request, kind: type[_Kind], wrong: int = 400) -> _Kind:
    """The body of a request.

    Args:
        wrong: the status of valid JSON with wrong values.

    Raises:
        RequestError: no JSON, or not this body.
    """
    media = (header(request.scope, b"content-type") or "").partition(";")[0].strip().lower()
    if media != "application/json":
        said = f"not {media}" if media else "and the request says nothing"
        raise RequestError(415, f"the body must be JSON: send 'Content-Type: application/json', {said}")
    packed = (header(request.scope, b"content-encoding") or "identity").strip().lower()
    if packed != "identity":
        raise RequestError(415, f"the body is packed with {packed[:20]}: this server reads plain JSON")
    try:
        values = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise RequestError(wrong, 'the body must be a JSON object, such as {"input": "a text"}')
    settings = state_of(request).settings
    _require_small(values, settings.max_texts, settings.request_tokens, wrong)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        where = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
        message = "; ".join(sentences(kind, values, error)[:3])
        raise RequestError(wrong, message, param=_path(where), code="invalid_value") from None


def _require_small(values: dict[str, Any], texts: int, tokens: int, wrong: int) -> None:
    """Refuse what is far too much before each entry of it is looked at: that would hold everybody up.

    Raises:
        RequestError: more keys than any body has; 413, more texts or token ids than a request may have.
    """
    groups = [values, *(value for value in values.values() if isinstance(value, dict))]
    for group in groups:
        if len(group) > _MOST_KEYS:
            raise RequestError(wrong, f"the body has {len(group)} keys in one place, which no request has")
        for name, value in group.items():
            if not isinstance(value, list) or not value:
                continue
            is_ids = type(value[0]) is int
            if len(value) > (tokens if is_ids else texts):
                what, most = ("token ids", tokens) if is_ids else ("entries", texts)
                message = f"{name[:40]} has {len(value)} {what}; send at most {most} in a request"
                raise RequestError(413, message, param=name[:40])
            count = sum(len(row) for row in value if type(row) is list)
            if count > tokens:
                message = f"{name[:40]} has {count} token ids; send at most {tokens} in a request"
                raise RequestError(413, message, param=name[:40])


def _path(parts: Sequence[Any]) -> str | None:
    return ".".join(str(part) for part in parts[:2]) or None
