"""Language models that judge a pair in words: the score is the probability of "yes" against "no".

``score = sigmoid(logit(yes) - logit(no))`` of the token behind the pair. The two logits are products of the
last state with two rows of the output matrix W, so the model is a reranker whose head is ``W[yes] - W[no]``,
without a bias, on the state of the last token: it is read, run and written as one.

Source: Qwen3 Embedding, arXiv 2506.05176, and the model card of Qwen3-Reranker, which has the words around a
pair.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from torch import Tensor

from moembed.families.decoder import KINDS
from moembed.families.registry import family_of
from moembed.families.rerankers import LAYOUTS
from moembed.files import read_json
from moembed.folder.read import read_config
from moembed.folder.reranker_parts import RerankerParts
from moembed.folder.settings import SENTENCE_TRANSFORMERS, read_transformer_settings
from moembed.folder.tensors import by_our_names, read_all
from moembed.folder.tokenizer import read_tokenizer, tokenizer_files
from moembed.model.score_head import ScoreHeadConfig
from moembed.tokenizer import PairTemplate, Tokenizer
from moembed.types import UserError

TEMPLATE = "pair_template"  # the key of the folder of a judge that was written again
HEAD = ScoreHeadConfig(pooling="lasttoken", dense=False, out_bias=False)
QWEN3 = PairTemplate(
    before="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    pair="<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}",
    after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)


def is_judge(path: Path) -> bool:
    """Whether the folder holds a whole language model of a family that can judge."""
    file = path / "config.json"
    values = read_json(file) if file.is_file() else {}
    names = {
        f"{KINDS[kind].architecture.removesuffix('Model')}ForCausalLM" for kind in KINDS if kind in LAYOUTS
    }
    return values.get("model_type") in KINDS and (values.get("architectures") or [None])[0] in names


def read_judge(path: Path, allow_pickle: bool = False) -> RerankerParts:
    """A language model as a reranker, with the words of Qwen3-Reranker around every pair.

    Warns:
        UserWarning: that it is read so; a model that was not trained to judge gives scores of little worth.

    Raises:
        UserError: "yes" or "no" is no single token; what `moembed.folder.read.read_folder` refuses.
    """
    spec, values = read_config(path), read_json(path / "config.json")
    theirs = read_all(path, allow_pickle)
    rows_VD = _output_rows(theirs, values, path)
    transformer = read_transformer_settings(path, "text-generation")
    backend, _ = read_tokenizer(path, spec.vocab_size, transformer.options, transformer.lowercase)
    yes, no = (_one_token(backend, word, path) for word in ("yes", "no"))
    weight_1D = (rows_VD[yes].float() - rows_VD[no].float())[None]
    state = by_our_names(theirs, path, spec, family_of(values))
    tokenizer = Tokenizer(backend, min(transformer.max_length or spec.max_length, spec.max_length))
    tokenizer.pair_template = QWEN3
    warnings.warn(
        f"{path} is a language model: it is asked in the words of Qwen3-Reranker, and the score is that of "
        '"yes" against "no"; one that was not trained to judge so scores badly',
        stacklevel=3,
    )
    files = tokenizer_files(path)
    return RerankerParts(
        spec, state, tokenizer, HEAD, {"out.weight": weight_1D}, "sigmoid", False, "", files, values
    )


def _output_rows(theirs: dict[str, Tensor], values: dict[str, Any], path: Path) -> Tensor:
    """The matrix that makes logits of states; models that tie it use the word table."""
    name = "model.embed_tokens.weight" if "lm_head.weight" not in theirs else "lm_head.weight"
    if name not in theirs or (name != "lm_head.weight" and values.get("tie_word_embeddings") is False):
        raise UserError(f"{path} has no lm_head.weight, so it gives no logits of words")
    return theirs[name]


def _one_token(backend: Backend, word: str, path: Path) -> int:
    ids: list[int] = backend.encode(word, add_special_tokens=False).ids
    if len(ids) != 1 or backend.id_to_token(ids[0]) != word:
        raise UserError(f"{path}: its tokenizer has no single token for {word!r}, so it cannot judge with it")
    return ids[0]


def read_template(path: Path) -> PairTemplate | None:
    """The words around a pair that a folder of ours names; None: it names none.

    Raises:
        UserError: they are no texts, or have no place for the query and the document.
    """
    file = path / SENTENCE_TRANSFORMERS
    values = read_json(file).get(TEMPLATE) if file.is_file() else None
    if values is None:
        return None
    texts: list[Any] = (
        [values.get(field.name) for field in fields(PairTemplate)] if isinstance(values, dict) else []
    )
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{file}: {TEMPLATE} must have the texts before, pair and after")
    template = PairTemplate(*texts)
    if "{query}" not in template.pair or "{document}" not in template.pair.partition("{query}")[2]:
        raise UserError(f"{file}: pair of {TEMPLATE} must hold {{query}} and then {{document}}")
    return template
