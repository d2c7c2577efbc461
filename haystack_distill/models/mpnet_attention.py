"""MPNet's attention by fused kernels: transformers computes it piece by piece, because of its position bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from haystack_distill.utils.cpu_attention import added_mask, attention_gradients, attention_weights


def use_fused_attention(model: nn.Module) -> None:
    """Let MPNet's attention in a model run by fused kernels; other models are left as they are.

    Weights, names and results stay the same, but for rounding. Attention probabilities that are asked for
    (`output_attentions`) are still computed as transformers does.
    """
    for module in model.modules():
        if type(module) in _FUSED:
            module.__class__ = _FUSED[type(module)]


class FusedMPNetEncoder(MPNetEncoder):
    """MPNet's encoder with a position bias that is the same for all windows of a batch, (1, heads, L, L)."""

    def compute_position_bias(self, x: Tensor, position_ids: Tensor | None = None, num_buckets: int = 32) -> Tensor:
        """The bias of hidden states (B, L, H); transformers makes a copy for each window."""
        alike = x if position_ids is not None else x[:1]
        bias: Tensor = super().compute_position_bias(alike, position_ids, num_buckets)
        return bias


class FusedMPNetSelfAttention(MPNetSelfAttention):
    """MPNet's attention by PyTorch's kernels, on a CPU with gradients by `BiasedAttention`."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **keywords: Any
    ) -> tuple[Tensor, ...]:
        """As transformers' own; its versions 4 and 5 differ in whether a `head_mask` comes before the bias."""
        bias = keywords.get("position_bias", others[-1] if others else None)
        dropout = self.dropout.p if self.training else 0.0
        learning = torch.is_grad_enabled() and hidden_states.device.type == "cpu"
        special = keywords.get("output_attentions") or keywords.get("head_mask") is not None
        if bias is None or special or any(one is not None for one in others[:-1]) or (learning and dropout):
            found: tuple[Tensor, ...] = super().forward(hidden_states, attention_mask, *others, **keywords)
            return found
        by_head = (*hidden_states.shape[:2], -1, self.attention_head_size)
        query, key, value = (
            projection(hidden_states).view(by_head).transpose(1, 2) for projection in (self.q, self.k, self.v)
        )
        added = _added(bias, attention_mask, query.dtype, detached=learning)
        if learning:
            attended = BiasedAttention.apply(query, key, value, bias, added)
        else:
            attended = scaled_dot_product_attention(query, key, value, attn_mask=added, dropout_p=dropout)
        return (self.o(attended.transpose(1, 2).flatten(2)),)


_FUSED: dict[type, type] = {MPNetEncoder: FusedMPNetEncoder, MPNetSelfAttention: FusedMPNetSelfAttention}


def _added(bias: Tensor, mask: Tensor | None, dtype: torch.dtype, *, detached: bool) -> Tensor:
    """What is added to the scores of each head: the bias, (1 or B, heads, L, L), and the mask of padding."""
    # Kept with the bias, which the layers of one forward pass share: no longer than it lives, and for no other thread.
    kept = getattr(bias, "_added", None)
    if kept is not None and kept[0] is mask and kept[1] == (dtype, detached):
        found: Tensor = kept[2]
        return found
    total = bias.detach() if detached else bias
    if mask is not None:
        total = total + (added_mask(mask, total.dtype) if mask.dtype == torch.bool else mask)
    # The lowest number of fp32 would become -inf in a shorter format, and a window without any token NaN.
    total = total.clamp(min=torch.finfo(dtype).min).to(dtype)
    bias._added = (mask, (dtype, detached), total)  # type: ignore[attr-defined]
    return total


class BiasedAttention(torch.autograd.Function):
    """Attention with a bias that learns, by matrix products: softmax(q k^T / sqrt(d) + bias + mask) v.

    PyTorch has no fused kernel on a CPU with a gradient for the bias. The probabilities are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, added: Tensor) -> Tensor:
        """The attended values.

        Args:
            ctx: What the backward pass needs is kept here.
            query: (B, heads, L, d), like `key` and `value`.
            key: See `query`.
            value: See `query`.
            bias: (1 or B, heads, L, L); it has the gradient of what is added.
            added: (1 or B, heads, L, L), in the precision of `query`: the bias and the mask.

        Returns:
            (B, heads, L, d).
        """
        shape = query.shape
        by_head = [one.flatten(0, 1) for one in (query, key, value)]
        places = added.expand(*shape[:3], key.shape[2]).flatten(0, 1)
        with torch.autocast(query.device.type, enabled=False):
            weights = attention_weights(by_head[0], by_head[1], places, shape[-1] ** -0.5)
            attended = torch.bmm(weights, by_head[2])
        ctx.save_for_backward(*by_head, weights)
        ctx.shape, ctx.bias = shape, (bias.shape, bias.dtype)
        return attended.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of query, key, value and bias."""
        query, key, value, weights = ctx.saved_tensors
        shape = ctx.shape
        *found, of_scores = attention_gradients(gradient.flatten(0, 1), query, key, value, weights, shape[-1] ** -0.5)
        of_bias = None
        if ctx.needs_input_grad[3]:
            bias_shape, dtype = ctx.bias
            by_window = of_scores.view(*shape[:2], *of_scores.shape[1:])
            of_bias = by_window.sum(0, keepdim=True, dtype=dtype) if bias_shape[0] == 1 else by_window.to(dtype)
        return *(one.view(shape) for one in found), of_bias, None
