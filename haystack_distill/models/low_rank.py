"""Low-rank updates that were added to dense layers: remembered, so that a reader can be saved as its base and them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_ATTRIBUTE = "low_rank_updates"  # of a dense layer; copies of a model have it too


class LowRankUpdate(NamedTuple):
    """An update of a dense layer's weight, `scale * up @ down` (Hu et al. 2022, arXiv 2106.09685, equation 3).

    Attributes:
        down: (rank, in_features).
        up: (out_features, rank).
        scale: Factor of the product.
    """

    down: Tensor
    up: Tensor
    scale: float


def updated(weight: Tensor, update: LowRankUpdate) -> Tensor:
    """A weight (out_features, in_features) with an update added.

    The product is computed in float64 on the processor, so that it is rounded alike wherever it is computed.
    """
    product = update.scale * (update.up.cpu().double() @ update.down.cpu().double())
    return weight + product.to(weight)


def merge_update(dense: nn.Linear, update: LowRankUpdate) -> None:
    """Add an update to a dense layer's weight, in place, and remember it."""
    with torch.no_grad():
        dense.weight.copy_(updated(dense.weight, update))
    kept = update._replace(down=update.down.detach().cpu().clone(), up=update.up.detach().cpu().clone())
    setattr(dense, _ATTRIBUTE, [*getattr(dense, _ATTRIBUTE, ()), kept])


def updates_of(model: nn.Module) -> dict[str, list[LowRankUpdate]]:
    """The remembered updates of a model by the names of the weights, the oldest first."""
    return {
        f"{name}.weight": list(getattr(module, _ATTRIBUTE))
        for name, module in model.named_modules()
        if hasattr(module, _ATTRIBUTE)
    }


def remember_updates(model: nn.Module, updates: Mapping[str, Sequence[LowRankUpdate]]) -> None:
    """Remember updates that the weights of a model have already, in place of others."""
    for name, found in updates.items():
        setattr(model.get_submodule(name.rpartition(".")[0]), _ATTRIBUTE, list(found))


def updates_between(base: Tensor, weight: Tensor, remembered: Sequence[LowRankUpdate]) -> list[LowRankUpdate]:
    """Those of the remembered updates that make a weight of its base exactly; none where they do not.

    Only the last ones may do: an interrupted run leaves updates that its weights lack once it is resumed.
    """
    for first in reversed(range(len(remembered))):
        made = base
        for update in remembered[first:]:
            made = updated(made, update)
        if torch.equal(made, weight):
            return list(remembered[first:])
    return []
