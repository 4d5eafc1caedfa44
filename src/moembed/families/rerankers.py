"""How published rerankers store their heads: the classes of transformers for one number per text.

A layout is two functions between a ``config.json`` and a `ScoreHeadConfig`, and the names of the tensors. A
head that a layout cannot say is written in our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moembed.config import validate
from moembed.families import own
from moembed.families.registry import FAMILIES
from moembed.families.unknown import unknown
from moembed.model.norm import NormSpec
from moembed.model.score_head import ScoreHeadConfig
from moembed.types import UserError

_PLAIN = ScoreHeadConfig()  # tanh of a dense layer on the state of the first token
_OUT_ALONE = ScoreHeadConfig(pooling="lasttoken", dense=False, out_bias=False)


@dataclass(frozen=True)
class HeadLayout:
    """One class of transformers.

    Attributes:
        class_name: as ``architectures`` of ``config.json`` names it.
        base: what stands before the names of the encoder's tensors.
        names: our part of the head -> its name there; ``{base}`` stands for ``base``.
        read: ``config.json`` -> head.
        write: keys to add to ``config.json``, given the head.
        code: a class of code beside the weights, of which this is a copy.
    """

    class_name: str
    base: str
    names: dict[str, str]
    read: Callable[[dict[str, Any]], ScoreHeadConfig] = lambda values: _PLAIN
    write: Callable[[ScoreHeadConfig], dict[str, Any]] = lambda head: {}
    code: tuple[str, ...] = field(default=())

    def tensors(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
        """Our name of each tensor of the head -> the name in the file."""
        found = {}
        for ours in shapes:
            part, _, kind = ours.rpartition(".")
            found[ours] = self.names[part].replace("{base}", self.base) + f".{kind}"
        return found


def _behind_pooler(class_name: str, base: str, code: tuple[str, ...] = ()) -> HeadLayout:
    names = {"dense": "{base}pooler.dense", "out": "classifier"}
    return HeadLayout(class_name, base, names, code=code)


def _classifier(class_name: str, base: str) -> HeadLayout:
    return HeadLayout(class_name, base, {"dense": "classifier.dense", "out": "classifier.out_proj"})


def _of_decoder(class_name: str) -> HeadLayout:
    return HeadLayout(class_name, "model.", {"out": "score"}, lambda values: _OUT_ALONE)


# ---- those whose config decides ----------------------------------------------------------------------------


def _read_modernbert(values: dict[str, Any]) -> ScoreHeadConfig:
    """Pooled, then dense, activation and norm: the head of the masked language model, on one state."""
    return validate(
        ScoreHeadConfig,
        {
            "pooling": values.get("classifier_pooling", "cls"),
            "dense_bias": values.get("classifier_bias", False),
            "activation": values.get("classifier_activation", "gelu"),
            "norm": NormSpec(eps=values.get("norm_eps", 1e-5), bias=values.get("norm_bias", False)),
        },
        "the head in config.json",
    )


def _write_modernbert(head: ScoreHeadConfig) -> dict[str, Any]:
    return {
        "classifier_pooling": head.pooling,
        "classifier_bias": head.dense_bias,
        "classifier_activation": head.activation,
    }


def _read_eurobert(values: dict[str, Any]) -> ScoreHeadConfig:
    pooling = values.get("classifier_pooling", "late")
    if pooling not in ("bos", "mean"):
        raise UserError(f"classifier_pooling {pooling!r} is not supported (known: bos, mean)")
    return ScoreHeadConfig(pooling="cls" if pooling == "bos" else "mean", activation="gelu")


def _write_eurobert(head: ScoreHeadConfig) -> dict[str, Any]:
    return {"classifier_pooling": "bos" if head.pooling == "cls" else head.pooling}


def _read_own(values: dict[str, Any]) -> ScoreHeadConfig:
    return validate(ScoreHeadConfig, values["score_head"], "score_head in config.json")


OWN_CLASS = "MoembedForSequenceClassification"
LAYOUTS: dict[str, HeadLayout] = {
    "bert": _behind_pooler("BertForSequenceClassification", "bert."),
    "gte": _behind_pooler("GteForSequenceClassification", "gte."),
    "new": _behind_pooler("NewForSequenceClassification", "new.", ("NewForSequenceClassification",)),
    "nomic_bert": _behind_pooler("NomicBertForSequenceClassification", "nomic_bert."),
    "roberta": _classifier("RobertaForSequenceClassification", "roberta."),
    "xlm-roberta": _classifier("XLMRobertaForSequenceClassification", "roberta."),
    "camembert": _classifier("CamembertForSequenceClassification", "roberta."),
    "data2vec-text": _classifier("Data2VecTextForSequenceClassification", "data2vec_text."),
    "mpnet": _classifier("MPNetForSequenceClassification", "mpnet."),
    "distilbert": HeadLayout(
        "DistilBertForSequenceClassification",
        "distilbert.",
        {"dense": "pre_classifier", "out": "classifier"},
        lambda values: ScoreHeadConfig(activation="relu"),
    ),
    "modernbert": HeadLayout(
        "ModernBertForSequenceClassification",
        "model.",
        {"dense": "head.dense", "norm": "head.norm", "out": "classifier"},
        _read_modernbert,
        _write_modernbert,
    ),
    "eurobert": HeadLayout(
        "EuroBertForSequenceClassification",
        "model.",
        {"dense": "dense", "out": "classifier"},
        _read_eurobert,
        _write_eurobert,
    ),
    "llama": _of_decoder("LlamaForSequenceClassification"),
    "mistral": _of_decoder("MistralForSequenceClassification"),
    "qwen2": _of_decoder("Qwen2ForSequenceClassification"),
    "qwen3": _of_decoder("Qwen3ForSequenceClassification"),
    own.NAME: HeadLayout(
        OWN_CLASS,
        "encoder.",
        {"dense": "head.dense", "norm": "head.norm", "out": "head.out"},
        _read_own,
        lambda head: {"score_head": head.model_dump(mode="json")},
    ),
}


def layout_of(values: dict[str, Any]) -> HeadLayout:
    """The layout of a ``config.json``.

    Raises:
        UserError: a family, or a class of it, whose scores are not known here; code that is not run.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        why = "its head is not known here" if kind in FAMILIES else unknown(kind, LAYOUTS)
        raise UserError(f"model_type {kind!r} cannot rerank: {why} (known: {', '.join(LAYOUTS)})")
    layout = LAYOUTS[kind]
    classes = values.get("architectures") or []
    if classes[:1] != [layout.class_name]:
        found = classes[0] if classes else "no class"
        raise UserError(
            f"this is no reranker: architectures in config.json names {found}, and a reranker of this family "
            f"is a {layout.class_name}"
        )
    code = values.get("auto_map")
    name = code.get("AutoModelForSequenceClassification") if isinstance(code, dict) else None
    if isinstance(name, str) and name.rpartition(".")[2] not in layout.code:
        raise UserError(
            f"this model brings code of its own ({name} in config.json), which is not run: without it the "
            "scores would be others"
        )
    return layout


def says(kind: str, head: ScoreHeadConfig, values: dict[str, Any]) -> dict[str, Any] | None:
    """The keys of a config with this head, given those of its encoder; None: the layout cannot say it."""
    layout = LAYOUTS.get(kind)
    if layout is None:
        return None
    written = values | layout.write(head)
    try:
        return written if layout.read(written) == head else None
    except UserError:
        return None
