"""Registration with transformers' auto classes that costs nothing until transformers is used.

``import moembed`` must stay light, and transformers offers no entry point to plug into. So we wait for its
registry of configs to be imported and register ours right after; if it is there already, at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

REGISTRY = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Make ``AutoConfig``, ``AutoModel`` and ``SentenceTransformer`` know ``model_type: moembed``."""
    if REGISTRY in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Lets the usual finders find the registry and adds one step to its loading; then it is gone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from moembed.interop.config import MoembedConfig

    AutoConfig.register(MoembedConfig.model_type, MoembedConfig, exist_ok=True)
