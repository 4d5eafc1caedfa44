"""Our encoder as a model of transformers, and so as the first module of a ``SentenceTransformer``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from moembed.interop.config import MoembedConfig
from moembed.interop.nomic_config import NomicConfig
from moembed.losses.balance import balance_loss, z_loss
from moembed.model.encoder import Encoder
from moembed.model.tags import Tags
from moembed.types import RouterStats, UserError

_REFUSED = ("inputs_embeds", "position_ids", "output_attentions", "head_mask", "encoder_hidden_states")


class MoembedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Padded token ids -> hidden states, padded with zeros; padding is neither computed nor routed.

    While training, each forward pass adds ``router_balance * balance_loss + router_z * z_loss`` of its own
    tokens to whatever loss is made of its output: the values stay as they are, the gradient arrives in the
    backward pass. Set the coefficients on the config::

        model = SentenceTransformer(folder)
        model[0].model.config.router_balance = 0.01

    Two limits. Expert counts are those of one forward pass, not of the whole batch that GradCache or gradient
    accumulation splits, and n passes add n such terms: divide the coefficient by the number of passes of a
    step. And a scaled loss (fp16) does not scale these terms; train in fp32 or bf16. moembed's own trainer
    has neither limit.
    """

    config: MoembedConfig | NomicConfig
    config_class: type[MoembedConfig] | type[NomicConfig] = MoembedConfig
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"router"}  # noqa: RUF012

    def __init__(self, config: MoembedConfig | NomicConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.spec())
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **other: Any,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """
        Args:
            input_ids: ``(B, S)``, padded on either side with any token.
            attention_mask: ``(B, S)``, 0 on padding; None means that there is none.
            token_type_ids: taken and ignored: every token is of the first type.
            output_hidden_states: also return the states after 0, 1, … layers.

        Raises:
            UserError: a text longer than the model reads, a mask of another shape, no token at all, or an
                argument that would change the result and is not supported.
        """
        for name in _REFUSED:
            if other.get(name) is not None and other[name] is not False:
                raise UserError(f"moembed models do not support {name}")
        if input_ids.ndim != 2:
            raise UserError(f"input_ids has shape {tuple(input_ids.shape)}, expected (texts, tokens)")
        real_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if real_BS.shape != input_ids.shape:
            raise UserError(
                f"attention_mask has shape {tuple(real_BS.shape)}, expected {tuple(input_ids.shape)}"
            )
        row_T, column_T, length_B = real_tokens(real_BS.bool())
        if not length_B:
            raise UserError("the batch holds no token: attention_mask is 0 everywhere")

        last = self.encoder.spec.num_layers
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        depths = range(last + 1) if output_hidden_states else [last]
        tag_B = self._tag_numbers(len(length_B))
        hidden, router = self.encoder(input_ids[row_T, column_T], length_B, depths, tag_B=tag_B)
        if self.training and router:
            hidden[last] = self._with_router_loss(hidden[last], router)

        padded = [
            states_TD.new_zeros(*input_ids.shape, states_TD.shape[-1]).index_put((row_T, column_T), states_TD)
            for _, states_TD in sorted(hidden.items())
        ]
        output = BaseModelOutput(
            last_hidden_state=padded[-1], hidden_states=tuple(padded) if output_hidden_states else None
        )
        return output if return_dict else output.to_tuple()

    def _tag_numbers(self, texts: int) -> list[int] | None:
        """What ``config.tag`` says of all texts; None where no router looks at tags.

        Raises:
            UserError: it says nothing, or what the model does not know. Its own default is not taken: nobody
                would see that it was.
        """
        if (tags := Tags.of(self.encoder.spec)) is None:
            return None
        missing = (
            f"this model chooses its experts by the tag of a text (known: {', '.join(tags.names)}), which is "
            "no input of transformers: set model.config.tag for all texts, as in SentenceTransformer(folder, "
            "config_kwargs={'tag': ...}), or use moembed.Embedder"
        )
        if (tag := getattr(self.config, "tag", None)) is None:
            raise UserError(missing)
        return tags.numbers([tag] * texts, missing)

    def _with_router_loss(self, states_TD: Tensor, router: list[RouterStats]) -> Tensor:
        balance, z = self.config.router_balance, self.config.router_z
        if not (balance or z):
            return states_TD
        loss = balance * balance_loss(router, router) + z * z_loss(router, router)
        return _AddGradient.apply(states_TD, loss)  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.word

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.encoder.word = value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The rule of `moembed.model.encoder.initialise`, for tensors that no file has given their values."""
        for name, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, "_is_hf_initialized", False):
                continue
            if isinstance(module, nn.LayerNorm | nn.RMSNorm) and name == "weight":
                parameter.fill_(1)
            elif parameter.ndim == 1 or "bias" in name:
                parameter.zero_()
            else:
                parameter.normal_(0, 0.02)


class _AddGradient(torch.autograd.Function):
    """``states`` as they are; in the backward pass ``loss`` gets the gradient 1, as if added to the total."""

    @staticmethod
    def forward(ctx: Any, states_TD: Tensor, loss: Tensor) -> Tensor:
        return states_TD.view_as(states_TD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0].new_ones((), dtype=torch.float32)


def real_tokens(real_BS: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Row and column of every real token, shortest text first, and the length of each text that has any."""
    length_B = real_BS.sum(1)
    order_B = length_B.argsort(stable=True)
    place_T, column_T = real_BS[order_B].nonzero(as_tuple=True)
    return order_B[place_T], column_T, [length for length in length_B[order_B].tolist() if length]
