"""Registration with transformers' auto classes that costs nothing until transformers is used.

``import moembed`` must stay light, and transformers offers no entry point to plug into. So we wait for its
registries of configs and of models to be imported and register ours right after; what is there already, at
once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def install() -> None:
    """Make ``AutoConfig``, ``AutoModel``, ``SentenceTransformer`` and ``CrossEncoder`` know our models.

    Those are ``model_type: moembed`` and the published layout of NomicBERT, see
    `moembed.interop.nomic_config`.
    """
    for registry, register in REGISTRIES.items():
        if registry in sys.modules:
            register()
        else:
            sys.meta_path.insert(0, _AfterImport(registry, register))


class _AfterImport(MetaPathFinder):
    """Lets the usual finders find the registry and adds one step to its loading; then it is gone."""

    def __init__(self, registry: str, register: Callable[[], None]) -> None:
        self.registry, self.register = registry, register

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.registry:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            self.register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from moembed.interop.config import MoembedConfig
    from moembed.interop.nomic_config import NomicConfig

    for config in (MoembedConfig, NomicConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForSequenceClassification

    from moembed.interop.config import MoembedConfig
    from moembed.interop.model import MoembedModel
    from moembed.interop.nomic_config import NomicConfig
    from moembed.interop.nomic_model import NomicBertModel
    from moembed.interop.score_model import MoembedForSequenceClassification

    AutoModel.register(MoembedConfig, MoembedModel, exist_ok=True)
    AutoModelForSequenceClassification.register(
        MoembedConfig, MoembedForSequenceClassification, exist_ok=True
    )
    AutoModel.register(NomicConfig, NomicBertModel, exist_ok=True)


REGISTRIES = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}
