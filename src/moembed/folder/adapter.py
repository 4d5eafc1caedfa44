"""LoRA adapters (Hu et al., arXiv 2106.09685): a folder that holds what is added to the matrices of a base.

peft merges them, in float32; what is read is the merged model, and it is written as a whole one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moembed.families.registry import Family
from moembed.files import read_json
from moembed.folder.hub import locate
from moembed.folder.modules import ADAPTER
from moembed.folder.tensors import read_file
from moembed.types import UserError

_WEIGHTS = "adapter_model.safetensors"


def base_of(inside: Path) -> Path | None:
    """The model folder that the adapter in a folder was made for; None: there is no adapter in it.

    Raises:
        UserError: an adapter of another kind than LoRA, one that names no base, a base that is not there.
    """
    file = inside / ADAPTER
    if not file.is_file():
        return None
    values = read_json(file)
    kind, name, revision = (values.get(x) for x in ("peft_type", "base_model_name_or_path", "revision"))
    if kind != "LORA":
        raise UserError(f"{file}: adapters of type {kind!r} are not supported, only LORA")
    if not isinstance(name, str) or not name:
        raise UserError(f"{file} names no base: write its folder or hub id as base_model_name_or_path")
    try:
        return locate(name, revision)
    except UserError as error:
        raise UserError(
            f"{inside} is an adapter without its base {name!r} ({error}); put the base there, or correct "
            f"base_model_name_or_path in {ADAPTER}"
        ) from None


def merged_tensors(inside: Path, base: Path, family: Family) -> dict[str, Tensor]:
    """The tensors of the base with the adapter merged into them, by the names of transformers, float32.

    Args:
        base: where the ``config.json`` of the base lies.
        family: of the base.

    Raises:
        UserError: no peft, a base that transformers does not run by itself, an adapter of other matrices
            than the base has.
    """
    if family.code or family.name == "moembed":
        raise UserError(f"{inside}: adapters of {family.name} models are not supported: peft cannot run one")
    names = set(read_file(inside / _WEIGHTS))
    model, peft = _base_model(base, names), _peft(inside)
    try:
        with warnings.catch_warnings():  # of what is missing: it is refused below
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(model, inside)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{inside}: peft cannot put this adapter onto {base} ({reason})") from None
    # peft loads what fits and only warns of the rest
    if wrong := sorted(names ^ set(peft.get_peft_model_state_dict(adapted))):
        raise UserError(
            f"{inside}: the adapter does not fit its base {base}: {len(wrong)} of its tensors have no place "
            f"there or are missing, {wrong[0]!r} first"
        )
    # copies: peft changes the mapped file of the base in memory, and an Embedder reads mapped pages again
    return {name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()}


def _peft(inside: Path) -> Any:
    try:
        import peft
    except ImportError:
        raise UserError(
            f"{inside} is an adapter, and reading it needs peft: pip install 'moembed[peft]'"
        ) from None
    return peft


def _base_model(base: Path, names: set[str]) -> Any:
    """The base as transformers makes it, with the head of a language model if the adapter has its names."""
    from transformers import AutoModel, AutoModelForCausalLM

    whole = any(name.startswith("base_model.model.model.") for name in names)
    kind = AutoModelForCausalLM if whole else AutoModel
    try:
        return kind.from_pretrained(base, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{base}: transformers cannot load the base of the adapter ({reason})") from None
