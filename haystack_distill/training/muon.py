"""Muon for the matrices of the encoder's layers, with AdamW for everything else, as one optimiser."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError


def hidden_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights that Muon is made for: the matrices of the encoder's layers, not those of embeddings and tables.

    Args:
        model: The student's model.
    """
    encoder = model.base_model
    tables = {id(module.weight) for module in encoder.modules() if isinstance(module, nn.Embedding)}
    return [
        parameter
        for name, parameter in encoder.named_parameters()
        if parameter.dim() == 2 and id(parameter) not in tables and "embedding" not in name
    ]


class MuonAndAdamW(Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for matrices, and AdamW for the rest.

    Muon makes the momentum of a matrix's gradient orthogonal, so that a step changes the matrix by as much in the
    directions of small gradients as in those of large ones. Its update has the size of AdamW's (Liu et al. 2025, arXiv
    2502.16982, equation 4), so that both learn at one rate. It keeps one number a weight where AdamW keeps two.

    Args:
        matrices: Groups of weights with two dimensions, for Muon.
        rest: Groups of other weights; may be empty.
        adamw: Makes AdamW of groups of weights.

    Raises:
        DistilError: This PyTorch has no Muon, or there are no matrices.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        rest: list[dict[str, Any]],
        adamw: Callable[[list[dict[str, Any]]], Optimizer],
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise DistilError(
                f"optimizer='muon' needs PyTorch 2.9 or newer, and this is {torch.__version__}; use 'adamw'"
            )
        if not matrices:
            raise DistilError(
                "optimizer='muon' is for the matrices of the encoder's layers, and none is trained; use 'adamw'"
            )
        self._parts: list[Optimizer] = [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")]
        self._parts += [adamw(rest)] if rest else []
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The parts' own dictionaries, so that a rate that a schedule sets here is the one that a part reads.
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """What both keep of each weight."""
        return defaultdict(dict, {weight: kept for part in self._parts for weight, kept in part.state.items()})

    @state.setter
    def state(self, _: Any) -> None:
        """Not set: the parts have it. PyTorch's constructor tries to."""

    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
