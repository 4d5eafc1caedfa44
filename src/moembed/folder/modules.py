"""The modules of a sentence-transformers folder: ``modules.json`` and what lies in the folder of each.

Transformer, then Pooling, then any number of Dense, ExpertHead and Normalize. A module is a config of ours,
its tensors and its entry here, read and written side by side.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from moembed.files import read_json, write_json
from moembed.folder.parts import Parts
from moembed.folder.pooling import POOLINGS, read_pooling_config, write_pooling
from moembed.folder.tensors import read_tensors, write_tensors
from moembed.folder.unread import note_unread
from moembed.model.expert_head import ExpertHead
from moembed.model.head import Dense, HeadConfig, Normalize, Step
from moembed.model.pooling import PoolingConfig
from moembed.types import UserError

ADAPTER = "adapter_config.json"
EXPERT_HEAD = "moembed.interop.expert_head.ExpertHead"  # a module of ours
ATTENTION_POOLING = "moembed.interop.attention_pooling.AttentionPooling"  # pooling that learns, another
# of modules that are not those of sentence-transformers
_TYPES = {"ExpertHead": EXPERT_HEAD, "AttentionPooling": ATTENTION_POOLING}
STATIC, MODEL2VEC = "StaticEmbedding", "model2vec"  # a first module, and the model_type of folders without
COMPOSED = "composed"  # the model_type of folders that name other models: see `moembed.search.composed`
_DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function", "use_residual"}
_DENSE_KEYS |= {"module_input_name", "module_output_name"}
_ACTIVATIONS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "silu": "torch.nn.modules.activation.SiLU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
}


@dataclass(frozen=True)
class Module:
    """One entry of ``modules.json``: its class without the package, and its folder inside the model's."""

    kind: str
    path: str


def read_modules(folder: Path) -> list[Module]:
    """The modules in their order; none where there is no ``modules.json``.

    Raises:
        UserError: a damaged file, a module with code of its own, a path that leads out of the folder.
    """
    file = folder / "modules.json"
    if not file.exists():
        return []
    modules = []
    for entry in read_json(file, list):
        kind, path = (entry.get(key) if isinstance(entry, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(path, str):
            raise UserError(f"{file}: every module needs a type and a path, and {entry!r} lacks one")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"{file}: the path {path!r} leads out of the folder")
        if not kind.startswith("sentence_transformers.") and kind not in (EXPERT_HEAD, ATTENTION_POOLING):
            raise UserError(f"{file}: the module {kind} brings code of its own, which is not run")
        modules.append(Module(kind.rsplit(".", 1)[-1], path))
    return modules


def is_static(folder: Path) -> bool:
    """Whether a folder holds static word vectors: of sentence-transformers, or of model2vec."""
    if modules := read_modules(folder):
        return modules[0].kind == STATIC
    return _model_type(folder) == MODEL2VEC


def is_composed(folder: Path) -> bool:
    """Whether a folder holds no model, but what is done to the vectors of others."""
    return not (folder / "modules.json").exists() and _model_type(folder) == COMPOSED


def _model_type(folder: Path) -> object:
    file = folder / "config.json"
    return read_json(file).get("model_type") if file.is_file() else None


def encoder_folder(folder: Path) -> Path:
    """Where ``config.json``, the weights and the tokenizer lie, or an adapter: mostly the folder itself.

    Raises:
        UserError: static word vectors, or neither config where the first module lies.
    """
    if is_static(folder):
        raise UserError(
            f"{folder} is a table of static word vectors and has no layers: moembed.StaticEmbedder, moembed "
            "embed, search, evaluate and inspect read it, and nothing can be trained, upcycled or exported"
        )
    if is_composed(folder):
        raise UserError(
            f"{folder} is made of the vectors of other models and has no layers: moembed embed, index, "
            "search and evaluate read it, and nothing can be trained, upcycled, inspected or exported"
        )
    modules = read_modules(folder)
    inside = folder / modules[0].path if modules else folder
    if inside != folder and not any((inside / name).is_file() for name in ("config.json", ADAPTER)):
        raise UserError(
            f"{folder}: its first module is {modules[0].kind} in {modules[0].path}, where no config.json lies"
        )
    return inside


@dataclass(frozen=True)
class PooledHead:
    """What follows the encoder: pooling, the steps behind it, and whether the folder itself normalises."""

    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    normalised: bool = True

    def num_parameters(self, width: int, active: bool = False) -> int:
        """Of pooling and head, behind states ``width`` wide."""
        return self.pooling.num_parameters(width) + self.head.num_parameters(active)


def read_pooled_head(folder: Path, width: int) -> PooledHead:
    """The configs of all modules but the first.

    Args:
        width: of the encoder's states.

    Raises:
        UserError: a module, a way of pooling or an activation that is not known; sizes that do not fit.
    """
    modules = read_modules(folder)
    if not modules:
        warnings.warn(f"{folder} has no modules.json: mean pooling is assumed", stacklevel=2)
        return PooledHead()
    kinds = [module.kind for module in modules]
    known = kinds[:1] == ["Transformer"] and kinds[1:2] and kinds[1] in POOLINGS
    if not known or not set(kinds[2:]) <= {"Dense", "ExpertHead", "Normalize"}:
        found = " + ".join(kinds)
        raise UserError(
            f"{folder}: a model made of {found} is not supported, only Transformer + Pooling, then Dense, "
            "ExpertHead and Normalize"
        )
    pooling = read_pooling_config(folder / modules[1].path / "config.json", width)
    steps: list[Step] = []
    dim = pooling.dim(width)
    for module in modules[2:]:
        if module.kind in ("Dense", "ExpertHead"):
            read = _read_dense if module.kind == "Dense" else _read_expert_head
            step = read(folder / module.path / "config.json")
            if step.in_dim != dim:
                raise UserError(f"{folder / module.path} takes {step.in_dim} coordinates and is given {dim}")
            dim = step.out_dim
            steps.append(step)
        else:
            steps.append(Normalize())
    normalised = bool(steps) and isinstance(steps[-1], Normalize)
    return PooledHead(pooling, HeadConfig(tuple(steps if normalised else [*steps, Normalize()])), normalised)


def read_head_state(folder: Path, head: HeadConfig, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of the steps, by the names of ``HeadConfig.shapes``; each is checked.

    Raises:
        UserError: a missing, extra, misshapen or non-finite tensor.
    """
    state: dict[str, Tensor] = {}
    paths = [module.path for module in read_modules(folder)[2:]]
    for i, step in enumerate(head.steps):
        if not isinstance(step, Normalize):
            tensors = read_tensors(folder / paths[i], step.shapes(), allow_pickle)
            state |= {f"{i}.{name}": tensor for name, tensor in tensors.items()}
    return state


def read_pooling_state(
    folder: Path, pooling: PoolingConfig, width: int, allow_pickle: bool = False
) -> dict[str, Tensor]:
    """The tensors of a pooling that has any, by the names of ``PoolingConfig.shapes``; each is checked.

    Raises:
        UserError: a missing, extra, misshapen or non-finite tensor.
    """
    shapes = pooling.shapes(width)
    return read_tensors(folder / read_modules(folder)[1].path, shapes, allow_pickle) if shapes else {}


def write_modules(folder: Path, parts: Parts) -> None:
    """``modules.json`` and the folder of every module but the first, which is the folder itself."""
    pooling = POOLINGS[parts.pooling.learns]
    kinds = ["Transformer", pooling, *(type(step).__name__ for step in parts.head.steps)]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], start=1))]
    entries = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": _TYPES.get(kind, f"sentence_transformers.models.{kind}"),
        }
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", entries)
    for path in paths[1:]:
        (folder / path).mkdir()
    write_pooling(folder / paths[1], parts.pooling, parts.spec.width, parts.pooling_state)
    for i, (step, path) in enumerate(zip(parts.head.steps, paths[2:], strict=True)):
        if not isinstance(step, Normalize):
            values = _dense_values(step) if isinstance(step, Dense) else vars(step)
            write_json(folder / path / "config.json", values)
            write_tensors(folder / path, {name: parts.head_state[f"{i}.{name}"] for name in step.shapes()})


# ---- Dense -------------------------------------------------------------------------------------------------


def _read_dense(file: Path) -> Dense:
    values = read_json(file)
    into, out = (values.get(key) for key in ("in_features", "out_features"))
    if not (type(into) is int and type(out) is int and into > 0 and out > 0):
        raise UserError(f"{file}: in_features and out_features must be counts, not {into!r} and {out!r}")
    for key in ("module_input_name", "module_output_name"):
        if (name := values.get(key) or "sentence_embedding") != "sentence_embedding":
            raise UserError(f"{file}: {key} {name!r} is not supported, only 'sentence_embedding'")
    function = values.get("activation_function", _ACTIVATIONS["tanh"]) or _ACTIVATIONS["identity"]
    known = {theirs.rsplit(".", 1)[-1]: ours for ours, theirs in _ACTIVATIONS.items()}
    package, _, name = str(function).rpartition(".")
    if name not in known or not package.startswith("torch.nn"):
        raise UserError(f"{file}: activation {function!r} is not supported (known: {', '.join(known)})")
    note_unread(file, set(values) - _DENSE_KEYS)
    return Dense(into, out, bool(values.get("bias", True)), known[name], bool(values.get("use_residual")))


def _dense_values(step: Dense) -> dict[str, Any]:
    return {
        "in_features": step.in_dim,
        "out_features": step.out_dim,
        "bias": step.bias,
        "activation_function": _ACTIVATIONS[step.activation],
        **({"use_residual": True} if step.residual else {}),
    }


def _read_expert_head(file: Path) -> ExpertHead:
    values = read_json(file)
    keys = [field.name for field in fields(ExpertHead)]
    counts = {key: values.get(key) for key in keys}
    if wrong := [key for key, value in counts.items() if type(value) is not int or value < 1]:
        raise UserError(f"{file}: {wrong[0]} must be a count, not {counts[wrong[0]]!r}")
    note_unread(file, set(values) - set(keys))
    return ExpertHead(**counts)
