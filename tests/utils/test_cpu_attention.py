"""Attention's gradient in bfloat16 on a CPU: PyTorch's values, and only where it is slow otherwise."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from haystack_distill.utils.cpu_attention import FastBFloat16Gradients


def _inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, length, 3, 8, generator=generator) for length in (5, 7, 7)]
    return [one.bfloat16().to(dtype).transpose(1, 2).detach().requires_grad_() for one in made]


def _mask(kind: str) -> Tensor | None:
    keep = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    keep[1, ..., 4:] = False
    added = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
    return {"none": None, "bool": keep, "added": added, "row": added[:, :, :1]}[kind]


def _run(dtype: torch.dtype, mask: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    inputs = _inputs(dtype)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    attended = scaled_dot_product_attention(*inputs, attn_mask=mask, **options)
    weights = torch.linspace(-1, 1, attended.numel()).view(attended.shape).to(dtype)
    return attended, *torch.autograd.grad(attended, inputs, weights)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("mask", ["none", "bool", "added", "row"])
def test_values_and_gradients_are_those_of_full_precision(mask: str, scale: float | None) -> None:
    with FastBFloat16Gradients():
        found = _run(torch.bfloat16, _mask(mask), scale=scale)
    assert "_Attention" in type(found[0].grad_fn).__name__
    assert torch.equal(found[0], _run(torch.bfloat16, _mask(mask), scale=scale)[0])
    for one, other in zip(found, _run(torch.float64, _mask(mask), scale=scale), strict=True):
        assert (one.double() - other).norm() < 0.02 * other.norm()


def test_a_query_without_keys_has_finite_gradients() -> None:
    nothing = torch.zeros(2, 1, 5, 7, dtype=torch.bool)
    with FastBFloat16Gradients():
        assert all(one.isfinite().all() for one in _run(torch.bfloat16, nothing))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"dropout_p": 0.1}),
        (torch.bfloat16, {"is_causal": True}),
    ],
)
def test_other_attention_is_pytorchs_own(dtype: torch.dtype, options: dict[str, Any]) -> None:
    with FastBFloat16Gradients():
        torch.manual_seed(1)
        attended = _run(dtype, None, **options)
    assert "_Attention" not in type(attended[0].grad_fn).__name__
    torch.manual_seed(1)
    for one, other in zip(attended, _run(dtype, None, **options), strict=True):
        assert torch.equal(one, other)


def test_without_gradients_or_with_a_learned_mask_it_is_pytorchs_own() -> None:
    query, key, value = _inputs(torch.bfloat16)
    bias = torch.zeros(1, 3, 5, 7, dtype=torch.bfloat16, requires_grad=True)
    with FastBFloat16Gradients():
        with torch.no_grad():
            assert scaled_dot_product_attention(query, key, value).grad_fn is None
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias)
    assert torch.autograd.grad(attended.sum(), bias)[0].shape == bias.shape
