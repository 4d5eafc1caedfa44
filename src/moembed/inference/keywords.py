"""The keywords of sentence-transformers' ``encode``: taken, or refused with the way that there is here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from moembed.encoding import Tag
from moembed.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

Form = Literal["array", "tensor", "list of tensors"]


class Keywords(TypedDict, total=False):
    """What ``encode`` takes beside its own parameters.

    - ``tag``: of models that choose experts by a tag of the text, such as its language: one for all texts, or
      a list with one for each.

    The others are those of sentence-transformers:

    - ``show_progress_bar``: a bar on a terminal, a line every ten seconds elsewhere.
    - ``convert_to_tensor``: a tensor on the device of the model; ``convert_to_numpy`` false: a list of them.
    - ``truncate_dim``: our ``dim``; ``sentences`` and ``inputs``: our ``texts``.
    - ``precision``: ``float32``, or codes of one bit per coordinate, ``binary`` and ``ubinary``.
    - ``normalize_embeddings``, ``device``, ``output_value``: what is so already; anything else is refused.
    """

    sentences: Iterable[str] | str
    inputs: Iterable[str] | str
    show_progress_bar: bool | None
    convert_to_numpy: bool
    normalize_embeddings: bool | None
    truncate_dim: int | None
    precision: str | None
    device: str | torch.device | None
    output_value: str | None
    tag: Tag | None


class AllKeywords(Keywords, total=False):
    """Those, and the parameters of ``encode`` that ``encode_query`` and ``encode_document`` hand on."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int | None
    batch_tokens: int | None
    convert_to_tensor: bool


_OURS = ("texts", "prompt_name", "prompt", "dim", "batch_size", "batch_tokens", "progress", "tag")
_THEIRS = ("convert_to_tensor", *Keywords.__annotations__)
_KNOWN = (*_OURS, *_THEIRS)
_INSTEAD = {
    "pool": "texts are embedded by several processes with moembed.replicas.Replicas",
    "chunk_size": "texts are embedded by several processes with moembed.replicas.Replicas",
    "task": "pass prompt_name, the name of one of the model's prompts",
    "processing_kwargs": "set max_seq_length of the model",
}
_CALIBRATED = ("int8", "uint8")  # codes that depend on the other vectors of the call
_PRECISIONS = ("float32", "binary", "ubinary")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the keywords of one call ask for, checked."""

    form: Form = "array"
    precision: str = "float32"
    progress_bar: bool = False

    def result(self, array: np.ndarray, device: str) -> Any:
        """The vectors, ``(N, M)`` or ``(M,)``, in the form that was asked for.

        Codes are those of `sentence_transformers.quantize_embeddings`: a bit is 1 where the coordinate is
        above 0; ``binary`` shifts the byte by 128, to make it signed.
        """
        if self.precision != "float32":
            code = np.packbits(array > 0, axis=-1)
            array = (code - np.uint8(128)).view(np.int8) if self.precision == "binary" else code
        if self.form == "array":
            return array
        tensor: Tensor = torch.from_numpy(array).to(device)
        return list(tensor) if self.form == "list of tensors" and tensor.ndim > 1 else tensor


def read_keywords(given: Mapping[str, Any], device: str) -> Wishes:
    """Check the keywords of one call; texts and ``truncate_dim`` are read by `one_of`.

    Args:
        device: where the model is.

    Raises:
        UserError: a keyword that nobody knows, or one whose wish cannot be met here.
    """
    for name in given:
        if name not in _THEIRS:
            raise UserError(_unknown(name))
    if given.get("normalize_embeddings") not in (None, True):
        raise UserError("every vector has length 1 here: leave normalize_embeddings out, or pass True")
    if (value := given.get("output_value", "sentence_embedding")) != "sentence_embedding":
        raise UserError(f"output_value {value!r} is not available, only 'sentence_embedding': leave it out")
    _check_device(given.get("device"), device)
    precision = given.get("precision") or "float32"
    if precision in _CALIBRATED:
        raise UserError(
            f"precision {precision!r} takes its scale from all vectors of a call: embed with float32, then "
            f"call sentence_transformers.quantize_embeddings(vectors, precision={precision!r})"
        )
    if precision not in _PRECISIONS:
        raise UserError(f"precision {precision!r} is not known (known: {', '.join(_PRECISIONS)})")
    form: Form = "array"
    if given.get("convert_to_tensor"):
        form = "tensor"
    elif not given.get("convert_to_numpy", True):
        form = "list of tensors"
    return Wishes(form, precision, bool(given.get("show_progress_bar")))


def one_of(ours: str, value: Any, given: Mapping[str, Any], *names: str) -> Any:
    """The value of a parameter that has other names too.

    Raises:
        UserError: two of the names are given.
    """
    found = {ours: value, **{name: given[name] for name in names if name in given}}
    told = {name: value for name, value in found.items() if value is not None}
    if len(told) > 1:
        raise UserError(f"{' and '.join(told)} say the same: give one of them")
    return next(iter(told.values()), None)


def _unknown(name: str) -> str:
    if name in _INSTEAD:
        return f"encode has no {name}: {_INSTEAD[name]}"
    close = difflib.get_close_matches(name, _KNOWN, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"encode has no keyword {name!r} (known: {', '.join(_KNOWN)}){hint}"


def _check_device(wanted: Any, device: str) -> None:
    if wanted is None:
        return
    if isinstance(wanted, list):
        raise UserError("several devices: embed with moembed.replicas.Replicas, or pass one device")
    try:
        same = torch.device(wanted) == torch.device(device) or (str(wanted), device) == ("cuda", "cuda:0")
    except (RuntimeError, TypeError):
        raise UserError(f"there is no device {wanted!r} here") from None
    if not same:
        raise UserError(
            f"this model is on {device}: load it on the other device, "
            f"Embedder.from_pretrained(path, device={str(wanted)!r}), and leave device out here"
        )
