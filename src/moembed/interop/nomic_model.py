"""The published NomicBERT layout, experts included, as a model of transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from moembed.families.registry import FAMILIES
from moembed.folder.hub import locate
from moembed.folder.tensors import layout_tensors, read_state
from moembed.interop.model import MoembedModel
from moembed.interop.nomic_config import NomicConfig

_FAMILY = FAMILIES[NomicConfig.model_type]
_OF_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder")


class NomicBertModel(MoembedModel):  # type: ignore[no-untyped-call]
    """`MoembedModel` whose files have the published names, both when it is read and when it is saved.

    Its own name is the published one too: transformers writes it into ``config.json``.
    """

    config_class = NomicConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **options: Any) -> Any:
        """As in transformers; the tensors are checked one by one, as `moembed.Embedder` does.

        Raises:
            UserError: a missing, extra, misshapen or non-finite tensor; weights that are a pickle alone.
        """
        if pretrained_model_name_or_path is None or options.get("state_dict") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *arguments, **options)
        config = options.pop("config", None)
        of_hub = {name: options.pop(name) for name in _OF_HUB if name in options}
        if not isinstance(config, NomicConfig):
            config = NomicConfig.from_pretrained(pretrained_model_name_or_path, **of_hub)
        folder = _folder(pretrained_model_name_or_path, of_hub)
        state = read_state(folder, config.spec(), _FAMILY)
        named = {f"encoder.{name}": tensor for name, tensor in state.items()}
        model = super().from_pretrained(None, *arguments, config=config, state_dict=named, **options)
        (model[0] if isinstance(model, tuple) else model).name_or_path = str(pretrained_model_name_or_path)
        return model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """As in transformers, by the published names."""
        state = self.state_dict() if state_dict is None else state_dict
        ours = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
        theirs = layout_tensors(self.config.spec(), ours, _FAMILY)
        super().save_pretrained(save_directory, is_main_process, state_dict=theirs, **options)


def _folder(name: Any, of_hub: dict[str, Any]) -> Path:
    """Where the files lie: on disk, or fetched from the hub with the options of transformers."""
    inside = of_hub.pop("subfolder", "") or ""
    if os.path.isdir(name):
        return Path(name) / inside
    from transformers.utils.hub import cached_file

    known = {key: value for key, value in of_hub.items() if value is not None}
    for file in ("model.safetensors", "model.safetensors.index.json"):
        found = cached_file(
            name, file, subfolder=inside, _raise_exceptions_for_missing_entries=False, **known
        )
        if found is not None and not file.endswith(".json"):
            return Path(found).parent
    return locate(name, known.get("revision")) / inside
