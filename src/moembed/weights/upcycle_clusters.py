"""Experts for clusters of states: spherical k-means, and dense weights seen through the states of a cluster.

After cluster-aware upcycling, arXiv 2604.13508: the unit states that the dense block meets are clustered;
each expert gets the dense matrices, truncated to the directions that matter for the states of its cluster;
the rows of the router are the centroids. Only summaries of the paper were at hand; what they leave open is
decided here: the rank (``UpcycleConfig.rank``), that the truncated matrix minimises the error of the output
over the states of the cluster, and that biases stay as they are. The paper adds a loss, self-distillation
from an ensemble of the experts, which is not here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moembed.model.encoder import skeleton
from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import ACTIVATIONS, FeedForwardSpec
from moembed.types import Batch, UserError

_ROUNDS = 100  # of k-means, at most
_RIDGE = 1e-4  # of the mean variance of the states, added to each: few states span few directions


def collect_states(
    spec: EncoderSpec, state: dict[str, Tensor], batch: Batch, layers: Sequence[int]
) -> dict[int, Tensor]:
    """By layer, what the dense feed-forward block meets in the texts of ``batch``: ``(N, D)``."""
    encoder = skeleton(spec)
    encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    found: dict[int, Tensor] = {}

    def keep(number: int) -> object:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[number] = given[0].detach()

        block: nn.Module = encoder.layers[number].ffn  # type: ignore[assignment]
        return block.register_forward_pre_hook(hook)

    for number in layers:
        keep(number)
    with torch.inference_mode():
        encoder.eval()(batch.token_T, batch.length_B)
    return {number: states_ND.clone() for number, states_ND in found.items()}


def spherical_kmeans(states_ND: Tensor, clusters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unit centroids ``(E, D)`` and the cluster of every state ``(N,)``, by cosine.

    ``c_e = normalise(sum of x / |x| over the states x of e)``. The first centroids are drawn as k-means++
    does, far from one another; a cluster that loses all of its states takes the one that is farthest from its
    own centroid. Source: Dhillon and Modha 2001.

    Raises:
        UserError: fewer different directions than clusters.
    """
    unit_ND = F.normalize(states_ND.float(), dim=1)
    centroid_ED = unit_ND[torch.randint(len(unit_ND), (1,), generator=generator)]
    while len(centroid_ED) < clusters:
        far_N = (1 - (unit_ND @ centroid_ED.T).amax(1)).clamp(min=0)
        far_N[far_N < 1e-6] = 0
        if not far_N.any():
            raise UserError(
                f"the sample holds {len(centroid_ED)} different states, too few for {clusters} experts: "
                "raise upcycle.sample, or give more texts"
            )
        chosen = torch.multinomial(far_N, 1, generator=generator)
        centroid_ED = torch.cat([centroid_ED, unit_ND[chosen]])
    cluster_N = torch.full((len(unit_ND),), -1)
    for _ in range(_ROUNDS):
        cosine_NE = unit_ND @ centroid_ED.T
        nearest_N = cosine_NE.argmax(1)
        own_N = cosine_NE.amax(1)
        for empty in (nearest_N.bincount(minlength=clusters) == 0).nonzero()[:, 0].tolist():
            farthest = own_N.argmin()
            nearest_N[farthest], own_N[farthest] = empty, 1
        if torch.equal(nearest_N, cluster_N):
            break
        cluster_N = nearest_N
        sum_ED = torch.zeros_like(centroid_ED).index_add(0, cluster_N, unit_ND)
        centroid_ED = F.normalize(sum_ED, dim=1)
    return centroid_ED, cluster_N


def truncated(weight_OI: Tensor, states_NI: Tensor, rank: float) -> Tensor:
    """The matrix of a share ``rank`` of the singular values that is nearest to ``weight_OI`` on these states.

    It minimises ``sum over states of |W x - W' x|^2`` (and of a small ridge): with ``L L^T`` the second
    moments of the states and ``W L = U S V^T``, it is ``U_r S_r V_r^T L^-1``.
    """
    states_NI = states_NI.double()
    moment_II = states_NI.T @ states_NI / max(len(states_NI), 1)
    ridge = _RIDGE * moment_II.diagonal().mean().clamp(min=1e-12)
    moment_II = moment_II + ridge * torch.eye(len(moment_II), dtype=moment_II.dtype)
    root_II = torch.linalg.cholesky(moment_II)
    left_OR, value_R, right_RI = torch.linalg.svd(weight_OI.double() @ root_II, full_matrices=False)
    kept = max(1, round(rank * len(value_R)))
    product_OI = (left_OR[:, :kept] * value_R[:kept]) @ right_RI[:kept]
    return torch.linalg.solve_triangular(root_II, product_OI, upper=False, left=False).to(weight_OI.dtype)


def fit_to_clusters(
    made: dict[str, Tensor], ffn: FeedForwardSpec, states_ND: Tensor, rank: float, generator: torch.Generator
) -> None:
    """Change the copies in ``made``: the router's rows become centroids, each expert that of its cluster."""
    centroid_ED, cluster_N = spherical_kmeans(states_ND, len(made["up_EFD"]), generator)
    made["router.weight_ED"].copy_(centroid_ED)
    if rank == 1:
        return
    for expert in range(len(centroid_ED)):
        own_ND = states_ND[cluster_N == expert].float()
        up_FD, down_DF = made["up_EFD"][expert], made["down_EDF"][expert]
        inner_NF = _inner(made, ffn, expert, own_ND)  # of the dense block: it is what `down` has met
        down_DF.copy_(truncated(down_DF, inner_NF, rank))
        for part_FD in (up_FD, made["gate_EFD"][expert] if ffn.gated else None):
            if part_FD is not None:
                part_FD.copy_(truncated(part_FD, own_ND, rank))


def _inner(made: dict[str, Tensor], ffn: FeedForwardSpec, expert: int, states_ND: Tensor) -> Tensor:
    def linear(part: str) -> Tensor:
        bias = made.get(f"{part}_bias_EF")
        weight_FD = made[f"{part}_EFD"][expert].float()
        return F.linear(states_ND, weight_FD, None if bias is None else bias[expert].float())

    activation = ACTIVATIONS[ffn.activation]
    return activation(linear("gate")) * linear("up") if ffn.gated else activation(linear("up"))
