"""Attention with a fast gradient for training in bfloat16 on a CPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class FastBFloat16Gradients(TorchFunctionMode):
    """While it is active, bfloat16 attention on a CPU has a gradient by matrix products.

    PyTorch's own kernel is fast forward, but its gradient in bfloat16 takes about ten times as long as its forward pass
    (PyTorch 2.13, a Xeon with AMX), which is almost half of a training step of a small reader. The forward pass stays
    that kernel. Attention without gradients, with dropout, in another precision or on another device is not touched.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace `scaled_dot_product_attention` where its gradient would be slow."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and not torch.compiler.is_compiling():
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **more: Any,
) -> Tensor:
    """As PyTorch's `scaled_dot_product_attention`, of (B, heads, L, head size)."""
    inputs = query, key, value
    slow = (
        torch.is_grad_enabled()
        and any(one.requires_grad for one in inputs)
        and all(one.dtype == torch.bfloat16 and one.device.type == "cpu" and one.dim() == 4 for one in inputs)
        and query.shape[1] == key.shape[1]
    )
    mask_learns = attn_mask is not None and attn_mask.requires_grad
    if not slow or mask_learns or dropout_p or is_causal or any(more.values()):
        return scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, **more
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = added_mask(attn_mask, query.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attended: Tensor = _Attention.apply(query, key, value, attn_mask, scale)
    return attended


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores for a mask that is True where a key counts.

    The lowest number, not -inf, stands for the others: the scores of a query without any key stay finite.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def attention_weights(query: Tensor, key: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + added), (B heads, L, L), of queries and keys (B heads, L, head size)."""
    if added is None:
        return (torch.bmm(query, key.mT) * scale).softmax(dim=-1)
    return torch.baddbmm(added, query, key.mT, alpha=scale).softmax(dim=-1)


def attention_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values, (B heads, L, head size), and of the scores, (B heads, L, L).

    Args:
        gradient: That of the attended values, (B heads, L, head size).
        query: (B heads, L, head size), like `key` and `value`.
        key: See `query`.
        value: See `query`.
        weights: What `attention_weights` returned.
        scale: As for it.
    """
    of_scores = torch.ops.aten._softmax_backward_data(torch.bmm(gradient, value.mT), weights, -1, weights.dtype)
    return (
        torch.bmm(of_scores, key) * scale,
        torch.bmm(of_scores.mT, query) * scale,
        torch.bmm(weights.mT, gradient),
        of_scores,
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shapes = [one.shape for one in ctx.saved_tensors[:3]]
        query, key, value, gradient = (one.flatten(0, 1) for one in (*ctx.saved_tensors[:3], gradient))
        mask = ctx.saved_tensors[3]
        added = None if mask is None else mask.to(query.dtype).expand(*shapes[0][:3], key.shape[1]).flatten(0, 1)
        weights = attention_weights(query, key, added, ctx.scale)
        found = attention_gradients(gradient, query, key, value, weights, ctx.scale)[:3]
        return *(one.view(shape) for one, shape in zip(found, shapes, strict=True)), None, None
