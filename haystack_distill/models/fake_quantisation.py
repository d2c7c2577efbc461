"""Dense layers and embeddings that compute in floating point what int8 would give them, to be trained so.

Quantisation-aware training (Jacob et al. 2018, arXiv 1712.05877): values are rounded to the grid of int8 on the way
forward; the gradient passes as if they had not been, and is zero where they were clipped. The grids are those of ONNX
Runtime's dynamic quantisation: on another grid the errors are others, and what was learnt of them is of no use.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Module = TypeVar("Module", bound=nn.Module)


class TokensOf:
    """Remembers which positions of the batch that an encoder reads hold tokens, while it computes and after it.

    Args:
        encoder: The encoder.

    Attributes:
        mask: (B, L) bool, or None where the encoder was given no mask of that shape.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.mask: Tensor | None = None
        self._handle: RemovableHandle = encoder.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask", given[1] if len(given) > 1 else None)
        self.mask = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def forget(self) -> None:
        """Remember no more."""
        self._handle.remove()


class Int8Linear(nn.Linear):
    """A dense layer whose weights and inputs are rounded to int8; its parameters are those of the layer it replaces.

    Each output has its own symmetric scale of the weights, and each window its own asymmetric scale of the inputs, as
    in dynamic quantisation of one window at a time, without padding.
    """

    bits: int  # of the weights
    tokens: TokensOf | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        weight = round_symmetric(self.weight, self.bits)
        mask = None if self.tokens is None else self.tokens.mask
        if mask is not None and mask.shape != inputs.shape[:2]:
            mask = None
        return F.linear(round_asymmetric(inputs, mask), weight.to(inputs.dtype), self.bias)


class Int8Embedding(nn.Embedding):
    """An embedding whose table is rounded to int8 with one asymmetric scale."""

    def forward(self, indices: Tensor) -> Tensor:
        table = round_asymmetric(self.weight.unsqueeze(0)).squeeze(0)
        return F.embedding(indices, table, self.padding_idx)


def round_symmetric(values: Tensor, bits: int) -> Tensor:
    """Round to a grid of signed integers, of which 0 is 0, with a scale for each row: its largest magnitude is 127 of 8
    bits, and of fewer bits 2^(bits - 1).

    Args:
        values: (N, M), float.
        bits: Of the integers, 2 to 8.
    """
    largest = 127 if bits == 8 else 2 ** (bits - 1)
    with torch.no_grad():
        scale = _positive(values.abs().amax(dim=1).float() / largest)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(values.float(), scale, zeros, 0, -largest, largest).to(values.dtype)


def round_asymmetric(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Round to the grid of 256 values between the smallest and the largest of each row of the first dimension.

    The range is extended to contain 0, which stays 0.

    Args:
        values: (B, ...), float.
        mask: (B, L) bool, for values (B, L, ...): those that count for the range. None: all.
    """
    with torch.no_grad():
        counted = values.detach().float()
        if mask is not None:
            counted = counted.masked_fill(~mask.reshape(*mask.shape, *[1] * (counted.dim() - 2)), 0.0)
        rows = counted.flatten(1)
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
