"""Our ``config.json`` as a config of transformers."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig


class MoembedConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """``encoder`` holds the keys of `moembed.model.encoder.EncoderConfig`.

    ``router_balance`` and ``router_z`` are the coefficients of the router losses that a trainer which knows
    only vectors cannot add itself; see `moembed.interop.model.MoembedModel`. 0 leaves them out.
    """

    model_type = "moembed"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        router_balance: float = 0.0,
        router_z: float = 0.0,
        **rest: Any,
    ) -> None:
        # transformers' registry of models cannot be filled while it is being imported; by now it can
        from moembed.interop import model  # noqa: F401

        self.encoder = dict(encoder or {})
        self.router_balance, self.router_z = router_balance, router_z
        super().__init__(**rest)

    @property
    def hidden_size(self) -> int | None:
        return self.encoder.get("width")

    @property
    def num_hidden_layers(self) -> int | None:
        return self.encoder.get("num_layers")

    @property
    def num_attention_heads(self) -> int | None:
        return self.encoder.get("num_heads")

    @property
    def intermediate_size(self) -> int | None:
        return self.encoder.get("ffn_width")

    @property
    def vocab_size(self) -> int | None:
        return self.encoder.get("vocab_size")

    @vocab_size.setter
    def vocab_size(self, rows: int) -> None:
        self.encoder["vocab_size"] = rows
