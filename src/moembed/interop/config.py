"""Our ``config.json`` as a config of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from moembed.families.own import encoder_json, read_encoder
from moembed.model.spec import EncoderSpec
from moembed.types import UserError


class MoembedConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """``encoder`` holds what `moembed.families.own` reads: flat keys, or those of an ``EncoderSpec``.

    ``router_balance`` and ``router_z`` are the coefficients of the router losses that a trainer which knows
    only vectors cannot add itself; see `moembed.interop.model.MoembedModel`. 0 leaves them out.

    ``tag`` is that of all texts, for models that choose experts by a tag: transformers has no place where it
    could be said of each text.
    """

    model_type = "moembed"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        router_balance: float = 0.0,
        router_z: float = 0.0,
        tag: str | None = None,
        **rest: Any,
    ) -> None:
        self.encoder = dict(encoder or {})
        self.router_balance, self.router_z, self.tag = router_balance, router_z, tag
        super().__init__(**rest)

    def spec(self) -> EncoderSpec:
        """The encoder that the config describes.

        Raises:
            UserError: an unknown or missing key, a wrong value.
        """
        return read_encoder(self.encoder)

    def _spec(self) -> EncoderSpec | None:
        """None where there are no values, or wrong ones: the model says which, in one sentence."""
        try:
            return read_encoder(self.encoder) if self.encoder else None
        except UserError:
            return None

    def _of_spec(self, read: Callable[[EncoderSpec], int]) -> int | None:
        spec = self._spec()
        return None if spec is None else read(spec)

    @property
    def hidden_size(self) -> int | None:
        return self._of_spec(lambda spec: spec.width)

    @property
    def num_hidden_layers(self) -> int | None:
        return self._of_spec(lambda spec: spec.num_layers)

    @property
    def num_attention_heads(self) -> int | None:
        return self._of_spec(lambda spec: spec.layers[0].attention.num_heads)

    @property
    def intermediate_size(self) -> int | None:
        return self._of_spec(lambda spec: spec.layers[0].ffn.width)

    @property
    def vocab_size(self) -> int | None:
        return self._of_spec(lambda spec: spec.vocab_size)

    @vocab_size.setter
    def vocab_size(self, rows: int) -> None:
        self.encoder = json.loads(encoder_json(read_encoder(self.encoder).with_vocabulary(rows)))
