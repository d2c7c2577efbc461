"""Dense layers and embeddings that compute in floating point what int8 would give them, to be trained so.

Quantisation-aware training (Jacob et al. 2018, arXiv 1712.05877): values are rounded to the grid of int8 on the way
forward; the gradient passes as if they had not been, and is zero where they were clipped.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Int8Linear(nn.Linear):
    """A dense layer whose weights and inputs are rounded to int8; its parameters are those of the layer it replaces.

    Each output has its own symmetric scale of the weights, and each window its own asymmetric scale of the inputs, as
    in dynamic quantisation of one window at a time.
    """

    bits: int  # of the weights

    def forward(self, inputs: Tensor) -> Tensor:
        weight = round_symmetric(self.weight, self.bits, by_row=True)
        return F.linear(round_asymmetric(inputs), weight.to(inputs.dtype), self.bias)


class Int8Embedding(nn.Embedding):
    """An embedding whose table is rounded to int8 with one symmetric scale."""

    bits: int

    def forward(self, indices: Tensor) -> Tensor:
        table = round_symmetric(self.weight, self.bits, by_row=False)
        return F.embedding(indices, table, self.padding_idx)


def round_symmetric(values: Tensor, bits: int, *, by_row: bool) -> Tensor:
    """Round to the grid of signed integers, of which 0 is 0: the largest magnitude is the largest integer.

    Args:
        values: (N, M), float.
        bits: Of the integers, 2 to 8.
        by_row: One scale for each of the N rows, else one for all.
    """
    largest = 2 ** (bits - 1) - 1
    with torch.no_grad():
        extreme = values.abs().amax(dim=1) if by_row else values.abs().amax()
        scale = _positive(extreme.float() / largest)
    if not by_row:
        zero = torch.zeros((), dtype=torch.int32, device=values.device)
        return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, -largest, largest).to(values.dtype)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(values.float(), scale, zeros, 0, -largest, largest).to(values.dtype)


def round_asymmetric(values: Tensor) -> Tensor:
    """Round to the grid of 256 values between the smallest and the largest of each row of the first dimension.

    The range is extended to contain 0, which stays 0.

    Args:
        values: (B, ...), float.
    """
    with torch.no_grad():
        rows = values.detach().float().flatten(1)
        low, high = rows.amin(dim=1).clamp(max=0), rows.amax(dim=1).clamp(min=0)
        scale = _positive((high - low) / 255)
        zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_channel_affine(values.float(), scale, zero, 0, 0, 255).to(values.dtype)


def _positive(scale: Tensor) -> Tensor:
    return scale.clamp(min=torch.finfo(torch.float32).tiny)


def replace_module(model: nn.Module, name: str, made: nn.Module) -> None:
    """Put a module in the place of another one of the same parameters.

    Args:
        model: The model.
        name: The name of the module that is replaced, such as "encoder.layer.0.output.dense".
        made: The new module.
    """
    old = model.get_submodule(name)
    for parameter, value in old.named_parameters(recurse=False):
        setattr(made, parameter, value)
    made.train(old.training)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, made)


def of_same_shape(kind: type[Module], module: Any) -> Module:
    """A module of a kind, dense layer or embedding, with the shape of another, on the meta device: without weights."""
    if isinstance(module, nn.Linear):
        return kind(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    return kind(module.num_embeddings, module.embedding_dim, padding_idx=module.padding_idx, device="meta")
