"""Our reranker as a model of transformers, and so as the module of a ``CrossEncoder``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from moembed.config import validate
from moembed.interop.config import MoembedConfig
from moembed.interop.model import MoembedModel, real_tokens
from moembed.model.score_head import ScoreHead, ScoreHeadConfig
from moembed.packing import offsets
from moembed.types import UserError


class MoembedForSequenceClassification(MoembedModel):
    """Padded pairs of texts -> one logit each; ``score_head`` of the config is a `ScoreHeadConfig`.

    While training, the router losses are added as `MoembedModel` says.
    """

    _keep_in_fp32_modules_strict = {"router", "head"}  # noqa: RUF012

    def __init__(self, config: MoembedConfig) -> None:
        super().__init__(config)
        head = validate(ScoreHeadConfig, getattr(config, "score_head", None) or {}, "score_head")
        self.head = ScoreHead(head, self.encoder.spec.width)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **other: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """
        Args:
            token_type_ids: ``(B, S)``, which tokens are the query's and which the text's; None: not told.

        Raises:
            UserError: a pair longer than the model reads, or without a token; labels, and whatever else would
                change the result and is not supported.
        """
        for name in ("inputs_embeds", "position_ids", "output_attentions", "labels"):
            if other.get(name) is not None and other[name] is not False:
                raise UserError(f"moembed rerankers do not support {name}")
        mask_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        row_T, column_T, length_B = real_tokens(mask_BS.bool())
        if len(length_B) != len(input_ids):
            raise UserError("a pair holds no token: attention_mask is 0 in its row")
        type_T = None if token_type_ids is None else token_type_ids[row_T, column_T]
        last = self.encoder.spec.num_layers
        hidden, router = self.encoder(input_ids[row_T, column_T], length_B, [last], type_T)
        states_TD = hidden[last]
        if self.training and router:
            states_TD = self._with_router_loss(states_TD, router)
        packed_B1 = self.head(states_TD, tuple(length_B))
        # the rows stand by length: the first token of each says which one it is
        first_B = torch.tensor(offsets(length_B)[:-1], device=row_T.device)
        logit_B1 = torch.empty_like(packed_B1).index_copy(0, row_T[first_B], packed_B1)
        output = SequenceClassifierOutput(logits=logit_B1)
        return output if return_dict is not False else output.to_tuple()
