"""Learning tokenizers from texts, and more pieces for a tokenizer there is, with the `tokenizers` library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from moembed.types import UserError

_BLOCK = 2048  # texts tokenised at a time
_FEWEST_CHARACTERS = (
    100  # characters of the texts that always become pieces, if they are among the most frequent
)
_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}

Texts = Callable[[], Iterable[str]]  # called for every pass over them


@dataclass(frozen=True)
class Kind:
    """A tokenizer of the field: special tokens by role, in the order of their ids, and its parts."""

    special: dict[str, str]
    make: Callable[[dict[str, str], bool], Backend]
    trainer: Callable[..., Any]


def _wordpiece(special: dict[str, str], lowercase: bool) -> Backend:
    backend = Backend(models.WordPiece(unk_token=special["unk"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _unigram(special: dict[str, str], lowercase: bool) -> Backend:
    backend = Backend(models.Unigram())
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    backend.normalizer = normalizers.Sequence([*steps, *([normalizers.Lowercase()] if lowercase else [])])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def _bpe(special: dict[str, str], lowercase: bool) -> Backend:
    backend = Backend(models.BPE(unk_token=special["unk"]))
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    return backend


KINDS = {
    "wordpiece": Kind(_BERT, _wordpiece, trainers.WordPieceTrainer),
    "unigram": Kind(_ROBERTA, _unigram, trainers.UnigramTrainer),
    "bpe": Kind(_ROBERTA, _bpe, trainers.BpeTrainer),
}


def learn(kind: str, texts: Texts, size: int, lowercase: bool = False) -> Backend:
    """A tokenizer of at most ``size`` pieces, special tokens included.

    ``wordpiece`` is made as BERT's, ``unigram`` as XLM-R's, ``bpe`` as RoBERTa's, over bytes. Chance decides
    between equally frequent pieces.

    Raises:
        UserError: a size too small for the special tokens and the characters.
    """
    parts = KINDS[kind]
    names = list(parts.special.values())
    backend = parts.make(parts.special, lowercase)
    options: dict[str, Any] = {"vocab_size": size, "special_tokens": names, "show_progress": False}
    if kind == "unigram":
        options["unk_token"] = parts.special["unk"]
    if kind == "bpe":
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    least = len(names) + len(options.get("initial_alphabet", "a"))
    if size < least:
        raise UserError(f"a {kind} vocabulary has at least {least} pieces, so {size} are too few")
    _train(backend, texts, parts.trainer(**options))
    first, last = parts.special["cls"], parts.special["sep"]
    ids = [(name, backend.token_to_id(name)) for name in (first, last)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ids
    )
    return backend


def extend(backend: Backend, texts: Texts, count: int) -> Backend:
    """``backend`` with up to ``count`` more pieces learnt on ``texts``; old pieces keep their ids.

    The texts are normalised and split as ``backend`` does, a vocabulary is learnt on them, and its pieces
    that are new are appended, most useful first: in WordPiece characters and then merges in the order they
    were learnt, in Unigram by their probability. Fewer than ``count`` come where the texts hold no more.

    Raises:
        UserError: a tokenizer that is neither WordPiece nor Unigram.
    """
    values = json.loads(backend.to_str())
    kind = values["model"]["type"]
    if kind not in _EXTEND:
        raise UserError(
            f"a vocabulary of kind {kind} cannot be extended, only {' and '.join(_EXTEND)}; "
            "learn a new tokenizer for the base instead, without --extend"
        )
    if count:
        _EXTEND[kind](values, backend, texts, count)
    return Backend.from_str(json.dumps(values))


def _extend_wordpiece(values: dict[str, Any], backend: Backend, texts: Texts, count: int) -> None:
    known = backend.get_vocab()
    prefix = values["model"]["continuing_subword_prefix"]
    learner = _like(backend, models.WordPiece(unk_token=values["model"]["unk_token"]))
    trainer = trainers.WordPieceTrainer(
        vocab_size=len(known) + count,
        limit_alphabet=max(_FEWEST_CHARACTERS, count // 2),
        continuing_subword_prefix=prefix,
        show_progress=False,
    )
    _train(learner, texts, trainer)
    learnt = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    new = [piece for piece, _ in learnt if piece not in known][:count]
    start = max(known.values()) + 1
    # tokens added behind the vocabulary come into it, or they would be numbered anew behind the new pieces
    values["model"]["vocab"] |= known | {piece: start + i for i, piece in enumerate(new)}


def _extend_unigram(values: dict[str, Any], backend: Backend, texts: Texts, count: int) -> None:
    known = backend.get_vocab()
    vocabulary = values["model"]["vocab"]
    by_id = {number: piece for piece, number in known.items()}
    # ids are places in the list, so tokens that were added behind it must come in before new pieces do
    vocabulary += [[by_id[number], 0.0] for number in range(len(vocabulary), max(by_id) + 1)]
    used: set[int | str] = set()
    stream = iter(texts())
    while block := list(islice(stream, _BLOCK)):
        used.update(i for encoding in backend.encode_batch_fast(block) for i in encoding.ids)
        used.update(
            *(backend.normalizer.normalize_str(text) if backend.normalizer else text for text in block)
        )
    learner = _like(backend, models.Unigram())
    unknown = by_id[values["model"]["unk_id"]]
    # beside the pieces and characters of these texts there is room for twice as many as will be taken
    size = len(used) + 2 * count
    trainer = trainers.UnigramTrainer(vocab_size=size, unk_token=unknown, show_progress=False)
    _train(learner, texts, trainer)
    learnt = json.loads(learner.to_str())["model"]["vocab"]
    new = sorted(
        (entry for entry in learnt if entry[0] not in known), key=lambda entry: (-entry[1], entry[0])
    )
    vocabulary += new[:count]


_EXTEND = {"WordPiece": _extend_wordpiece, "Unigram": _extend_unigram}


def _train(backend: Backend, texts: Texts, trainer: Any) -> None:
    try:
        backend.train_from_iterator(texts(), trainer)
    except UserError:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"a vocabulary of {trainer.vocab_size} pieces cannot be learnt: {error}") from None


def _like(backend: Backend, model: models.Model) -> Backend:
    learner = Backend(model)
    for part in ("normalizer", "pre_tokenizer"):
        if (value := getattr(backend, part)) is not None:
            setattr(learner, part, value)
    return learner


def tokenizer_files(
    backend: Backend, max_length: int, old: dict[str, bytes] | None = None, truncation_side: str = "right"
) -> dict[str, bytes]:
    """The files of a tokenizer folder.

    Args:
        old: those of the tokenizer this one extends: what they say besides the pieces is kept.
        truncation_side: the end of a text that a cut takes tokens from.
    """
    whole = backend.to_str(pretty=True)
    if old is not None:
        small = re.compile(r"(tokenizer_config|special_tokens_map)\.json")
        kept = {name: content for name, content in old.items() if small.fullmatch(name)}
        if "vocab.txt" in old:
            pieces = sorted(backend.get_vocab().items(), key=lambda item: item[1])
            kept["vocab.txt"] = "".join(piece + "\n" for piece, _ in pieces).encode()
        return _with_ids(kept, json.loads(whole)["added_tokens"]) | {"tokenizer.json": whole.encode()}
    special = {f"{role}_token": name for role, name in _roles(backend).items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **special}
    config |= {"truncation_side": truncation_side} if truncation_side != "right" else {}
    files = {"tokenizer.json": whole}
    files |= {"tokenizer_config.json": _json(config), "special_tokens_map.json": _json(special)}
    return {name: content.encode() for name, content in files.items()}


def _with_ids(files: dict[str, bytes], added: list[dict[str, Any]]) -> dict[str, bytes]:
    """``tokenizer_config.json`` with the ids that added tokens have now, where it tells them."""
    name = "tokenizer_config.json"
    config = json.loads(files.get(name, b"{}"))
    if "added_tokens_decoder" not in config:
        return files
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added}
    return files | {name: _json(config | {"added_tokens_decoder": decoder}).encode()}


def _roles(backend: Backend) -> dict[str, str]:
    found = [
        roles
        for roles in (_BERT, _ROBERTA)
        if all(backend.token_to_id(name) is not None for name in roles.values())
    ]
    return found[0] if found else {}


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
