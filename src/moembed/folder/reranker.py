"""A reranker's folder: ``...ForSequenceClassification`` of transformers, a CrossEncoder of
sentence-transformers, or our own, read and written whole.

Every key is read, is known to change no score, is refused, or is named in a warning.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from moembed.families import own
from moembed.families.registry import FAMILIES, family_of, family_to_write
from moembed.families.rerankers import LAYOUTS, OWN_CLASS, HeadLayout, layout_of, says
from moembed.files import read_json, replacing, write_json
from moembed.folder.judge import TEMPLATE, is_judge, read_judge, read_template
from moembed.folder.modules import encoder_folder, read_modules
from moembed.folder.read import config_folder, read_config, read_folder
from moembed.folder.reranker_parts import Activation, RerankerParts
from moembed.folder.settings import (
    SENTENCE_TRANSFORMERS,
    TOKENIZER_KEYS,
    TRANSFORMER_FILES,
    read_transformer_settings,
)
from moembed.folder.tensors import by_our_names, layout_tensors, read_all, take
from moembed.folder.tokenizer import read_tokenizer, reads_types, tokenizer_files
from moembed.folder.unread import note_unread
from moembed.folder.write import tokenizer_config
from moembed.model.score_head import ScoreHeadConfig, fresh_score_head, score_head_shapes
from moembed.model.spec import EncoderSpec
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

TASK = "sequence-classification"
# What sentence-transformers makes of a logit, by the name of the class.
_ACTIVATIONS: dict[str, Activation] = {"Sigmoid": "sigmoid", "Identity": "identity"}
_CLASSES = {
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "identity": "torch.nn.modules.linear.Identity",
}
_OF_MODEL = {"model_type", "__version__", "activation_fn", "prompts", "default_prompt_name", TEMPLATE}


# ---- reading -----------------------------------------------------------------------------------------------


def read_reranker(path: Path, allow_pickle: bool = False) -> RerankerParts:
    """Read and check a reranker's folder.

    Raises:
        UserError: no reranker, one of a family whose scores are not known here, several labels, and what
            `moembed.folder.read.read_folder` refuses.
    """
    if is_judge(path):
        return read_judge(path, allow_pickle)
    _check_modules(path)
    spec = read_config(path)
    values = read_json(path / "config.json")
    layout = layout_of(values)
    head = _read_head(path, layout, values)
    transformer = read_transformer_settings(path, TASK)
    activation, prompt = _read_model_settings(path, values)
    template = read_template(path)

    # ---- the tensors: those of the head, then the rest
    theirs = read_all(path, allow_pickle)
    shapes = score_head_shapes(head, spec.width)
    names = layout.tensors(shapes)
    out = theirs.get(names["out.weight"])
    if out is not None and len(out) != 1:
        raise UserError(
            f"{path} gives {len(out)} numbers for every pair ({names['out.weight']}), and a reranker gives "
            "one; this is a classifier of other things"
        )
    head_state = {ours: take(theirs, names[ours], shape, path).float() for ours, shape in shapes.items()}
    state = by_our_names(theirs, path, spec, family_of(values))

    # ---- the tokenizer, and whether it tells the two texts apart
    backend, side = read_tokenizer(path, spec.vocab_size, transformer.options, transformer.lowercase, True)
    limit = min(transformer.max_length or spec.max_length, spec.max_length)
    types = spec.embeddings.token_types > 0 and reads_types(path, transformer.options)
    if template is None:
        _check_pairs(path, backend.encode("a", "a"), spec, types)
    files = tokenizer_files(path)
    if kept := {key: value for key, value in transformer.file.items() if key in TOKENIZER_KEYS and value}:
        files[TRANSFORMER_FILES[0]] = json.dumps(kept).encode()
    tokenizer = Tokenizer(backend, limit, truncation_side=side)
    tokenizer.pair_template = template
    return RerankerParts(spec, state, tokenizer, head, head_state, activation, types, prompt, files, values)


def _check_modules(path: Path) -> None:
    modules = read_modules(path)
    if modules and [(module.kind, module.path) for module in modules] != [("Transformer", "")]:
        found = " + ".join(module.kind for module in modules)
        raise UserError(f"{path}: a reranker made of {found} is not supported, only a Transformer alone")


def _read_head(path: Path, layout: HeadLayout, values: dict[str, Any]) -> ScoreHeadConfig:
    try:
        return layout.read(values)
    except KeyError as error:
        raise UserError(f"{path / 'config.json'} has no key {error}") from None


def _read_model_settings(path: Path, values: dict[str, Any]) -> tuple[Activation, str]:
    """What makes a score of the logit, and the prompt of queries."""
    file = path / SENTENCE_TRANSFORMERS
    stated = read_json(file) if file.exists() else {}
    kind = stated.get("model_type", "CrossEncoder")
    if kind != "CrossEncoder":
        raise UserError(f"{file}: this is a {kind}, not a CrossEncoder, so it scores no pairs")
    note_unread(file, {key for key in set(stated) - _OF_MODEL if stated[key] is not None})
    inside = values.get("sentence_transformers")
    name = (
        stated.get("activation_fn")
        or (inside.get("activation_fn") if isinstance(inside, dict) else None)
        or values.get("sbert_ce_default_activation_function")
        or _CLASSES["sigmoid"]
    )
    package, _, function = str(name).rpartition(".")
    if function not in _ACTIVATIONS or not package.startswith("torch.nn"):
        raise UserError(
            f"{path}: activation_fn {name!r} is not supported (known: {', '.join(_CLASSES.values())})"
        )
    prompts, default = stated.get("prompts") or {}, stated.get("default_prompt_name")
    prompt = prompts.get(default) if isinstance(prompts, dict) and default else ""
    if not isinstance(prompt, str):
        raise UserError(f"{file}: the default prompt {default!r} is none of its prompts")
    if unused := sorted(set(prompts) - {default}):
        warnings.warn(f"{file}: prompts that are not used: {', '.join(map(str, unused))}", stacklevel=3)
    return _ACTIVATIONS[function], prompt


def _check_pairs(path: Path, pair: Any, spec: EncoderSpec, types: bool) -> None:
    """Refuse what would crash, or be read otherwise, in transformers."""
    if pair.sequence_ids.count(1) == 0:
        raise UserError(f"{path}: its tokenizer does not read two texts as one")
    if types and max(pair.type_ids) >= spec.embeddings.token_types:
        raise UserError(
            f"{path}: its tokenizer tells {max(pair.type_ids) + 1} types of tokens apart, and the model "
            f"knows {spec.embeddings.token_types}"
        )


def fresh_reranker(
    path: Path, pooling: Literal["cls", "mean"] = "cls", seed: int = 0, allow_pickle: bool = False
) -> RerankerParts:
    """An encoder's folder with a new head, to be trained; a reranker's folder as it is.

    The head has the form that the encoder's family gives it, with ``pooling``; in our own layout it is
    ``out(tanh(dense(pooled)))``.

    Raises:
        UserError: as ``read_reranker`` and `moembed.folder.read.read_folder`.
    """
    values = read_json(config_folder(path) / "config.json")
    if any(str(name).endswith("ForSequenceClassification") for name in values.get("architectures") or []):
        return read_reranker(path, allow_pickle)
    parts = read_folder(path, allow_pickle)
    inside = encoder_folder(path)
    inside = inside if tokenizer_files(inside) else config_folder(path)
    transformer = read_transformer_settings(encoder_folder(path))
    backend, side = read_tokenizer(
        inside, parts.spec.vocab_size, transformer.options, transformer.lowercase, True
    )
    tokenizer = Tokenizer(backend, parts.tokenizer.max_length, truncation_side=side)
    head = _fresh_head(values, pooling)
    pair, known = backend.encode("a", "a"), parts.spec.embeddings.token_types
    types = 1 <= max(pair.type_ids, default=0) < known
    _check_pairs(path, pair, parts.spec, types)
    head_state = fresh_score_head(head, parts.spec.width, seed)
    return RerankerParts(
        parts.spec, parts.state, tokenizer, head, head_state, "sigmoid", types, "", parts.files, parts.source
    )


def _fresh_head(values: dict[str, Any], pooling: Literal["cls", "mean"]) -> ScoreHeadConfig:
    layout = LAYOUTS.get(str(values.get("model_type")))
    if layout is None or layout.class_name == OWN_CLASS:
        return ScoreHeadConfig(pooling=pooling)
    usual = layout.read(values | {"classifier_pooling": "bos" if "EuroBert" in layout.class_name else "cls"})
    return usual if usual.pooling == "lasttoken" else usual.model_copy(update={"pooling": pooling})


# ---- writing -----------------------------------------------------------------------------------------------


def write_reranker(path: Path, parts: RerankerParts) -> None:
    """Write a folder that ``read_reranker`` gives back and CrossEncoder of sentence-transformers loads.

    It is stored in the layout it was read from while that can say encoder and head, else in our own, which
    sentence-transformers opens after ``import moembed``.
    """
    kind, values = _config_values(parts)
    layout = LAYOUTS[kind]
    shapes = score_head_shapes(parts.head, parts.spec.width)
    theirs = layout_tensors(parts.spec, parts.state, FAMILIES[kind])
    written = FAMILIES[kind].prefixes[0]
    theirs = {layout.base + name.removeprefix(written): tensor for name, tensor in theirs.items()}
    theirs |= {
        name: parts.head_state[ours].detach().cpu().contiguous()
        for ours, name in layout.tensors(shapes).items()
    }
    with replacing(path) as folder:
        write_json(folder / "config.json", values)
        save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
        _write_small_files(folder, parts)


def _config_values(parts: RerankerParts) -> tuple[str, dict[str, Any]]:
    """The layout, and ``config.json`` in it: as it was read, with what is no longer true written over it."""
    kind, source = family_to_write(parts.spec, parts.source).name, parts.source
    same = source.get("model_type") == kind
    base = source if same and FAMILIES[kind].read_config(source) == parts.spec else {}
    values = says(kind, parts.head, base or FAMILIES[kind].write_config(parts.spec))
    if values is None:
        kind = own.NAME
        values = says(kind, parts.head, own.write_config(parts.spec))
    assert values is not None  # our own says every head
    activation = _CLASSES[parts.activation]
    extra = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "num_labels": 1}
    extra |= {"sentence_transformers": {"activation_fn": activation}}
    dtype = str(next(iter(parts.state.values())).dtype).removeprefix("torch.")
    values = {key: value for key, value in values.items() if key not in ("auto_map", "torch_dtype")}
    return kind, values | {"architectures": [LAYOUTS[kind].class_name], "dtype": dtype} | extra


def _write_small_files(folder: Path, parts: RerankerParts) -> None:
    tokenizer, files = parts.tokenizer, dict(parts.files)
    kept = json.loads(files.pop(TRANSFORMER_FILES[0], b"{}"))
    for options in filter(lambda value: isinstance(value, dict), kept.values()):
        options.pop("model_max_length", None)  # tokenizer_config.json says it
    settings: dict[str, Any] = {"model_type": "CrossEncoder", "activation_fn": _CLASSES[parts.activation]}
    settings |= {"prompts": {"query": parts.prompt}, "default_prompt_name": "query"} if parts.prompt else {}
    settings |= {TEMPLATE: asdict(tokenizer.pair_template)} if tokenizer.pair_template else {}
    write_json(folder / SENTENCE_TRANSFORMERS, settings)
    modules = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    write_json(folder / "modules.json", [modules])
    output: dict[str, Any] = {"module_output_name": "scores", "transformer_task": TASK}
    output |= {"modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}}
    write_json(folder / TRANSFORMER_FILES[0], kept | output)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if "tokenizer.json" not in files:
        tokenizer.backend.save(str(folder / "tokenizer.json"))
    config = json.loads(files.get("tokenizer_config.json", b"null")) or tokenizer_config(tokenizer)
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * parts.types
    write_json(
        folder / "tokenizer_config.json",
        config | {"model_max_length": tokenizer.max_length, "model_input_names": names},
    )
