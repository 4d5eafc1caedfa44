"""The published config of NomicBERT, with or without experts, as a config of transformers.

transformers has a NomicBERT of its own under the same ``model_type``: dense, and with keys of its own. It
reads a published config as a model of its default sizes, which is another one. So the name is registered
for both: keys of transformers stay its own, the published keys are ours.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from moembed.families import nomic
from moembed.model.spec import EncoderSpec
from moembed.types import UserError


class NomicConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Every key as it is published; ``router_balance`` and ``router_z`` as in `moembed.interop.config`."""

    model_type = "nomic_bert"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    }

    def __init__(self, router_balance: float = 0.0, router_z: float = 0.0, **values: Any) -> None:
        self.router_balance, self.router_z = router_balance, router_z
        super().__init__(**values)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """The config of whichever class the keys are made for."""
        if is_published(config_dict):
            return super().from_dict(config_dict, **options)
        try:
            from transformers.models.nomic_bert.configuration_nomic_bert import NomicBertConfig
        except ImportError:
            raise UserError(
                "this config.json has the NomicBERT keys of a newer transformers: pip install -U transformers"
            ) from None
        return NomicBertConfig.from_dict(config_dict, **options)

    def spec(self) -> EncoderSpec:
        """The encoder that the config describes.

        Raises:
            UserError: a missing key, or a model that is not supported.
        """
        try:
            return nomic.read_config(self.to_dict())
        except KeyError as error:
            raise UserError(f"this NomicBERT config has no key {error}") from None


def is_published(values: dict[str, Any]) -> bool:
    """Whether only our class reads these keys as they are meant."""
    return "n_embd" in values and (bool(values.get("num_experts")) or "hidden_size" not in values)
