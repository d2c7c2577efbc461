"""Rounding to int8 in floating point: the grids, their gradients, and layers that share the weights they replace."""

import pytest
import torch
from torch import nn

from haystack_distill.models.fake_quantisation import (
    Int8Embedding,
    Int8Linear,
    of_same_shape,
    replace_module,
    round_asymmetric,
    round_symmetric,
)


def test_symmetric_grids() -> None:
    values = torch.tensor([[0.0, 6.4, -3.14], [0.0, 0.65, 0.319]])
    seven = round_symmetric(values, 7)  # 64 steps: 0.1 in the first row, 0.65 / 64 in the second
    second = torch.tensor([0.0, 0.65, 31 * 0.65 / 64])
    torch.testing.assert_close(seven, torch.stack([torch.tensor([0.0, 6.4, -3.1]), second]))
    eight = round_symmetric(torch.tensor([[12.7, 3.14]]), 8)
    torch.testing.assert_close(eight, torch.tensor([[12.7, 3.1]]))


def test_asymmetric_grids() -> None:
    values = torch.tensor([[[-5.1, 20.4], [0.04, 3.0]], [[1.0, 2.55], [0.5, 0.004]]])
    found = round_asymmetric(values)  # steps of 0.1 and, from 0 on, of 0.01
    torch.testing.assert_close(found, torch.tensor([[[-5.1, 20.4], [0.0, 3.0]], [[1.0, 2.55], [0.5, 0.0]]]))
    assert torch.equal(round_asymmetric(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
    mask = torch.tensor([[True, True], [True, False]])
    values[1, 1] = 99.0  # padding, which is clipped
    expected = torch.stack([found[0], torch.tensor([[1.0, 2.55], [2.55, 2.55]])])
    torch.testing.assert_close(round_asymmetric(values, mask), expected)


def test_a_window_does_not_depend_on_others() -> None:
    values = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    louder = torch.cat([values[:1], values[1:] * 9])
    assert torch.equal(round_asymmetric(values)[0], round_asymmetric(louder)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_pass_as_if_nothing_were_rounded(dtype: torch.dtype) -> None:
    weights = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    inputs = torch.randn(2, 5, 4, dtype=dtype, requires_grad=True)
    rounded = round_symmetric(weights, 8)
    assert rounded.dtype == dtype
    rounded.sum().backward()
    round_asymmetric(inputs).sum().backward()
    assert torch.equal(weights.grad, torch.ones_like(weights))
    assert torch.equal(inputs.grad, torch.ones_like(inputs))


def test_a_layer_computes_with_rounded_values_and_shares_its_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3))
    embedding, dense = model
    before = torch.random.get_rng_state()
    for name, module, kind in (("0", embedding, Int8Embedding), ("1", dense, Int8Linear)):
        made = of_same_shape(kind, module)
        made.bits = 8
        replace_module(model, name, made)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [type(module) for module in model] == [Int8Embedding, Int8Linear]
    assert model[1].weight is dense.weight
    assert model[1].bias is dense.bias
    assert model[0].weight is embedding.weight
    tokens = torch.tensor([[1, 2, 0], [3, 4, 5]])
    states = round_asymmetric(embedding.weight[None])[0][tokens]
    weight = round_symmetric(dense.weight, 8)
    expected = round_asymmetric(states) @ weight.T + dense.bias
    torch.testing.assert_close(model(tokens), expected)
    assert not torch.allclose(model(tokens), dense(embedding(tokens)), atol=1e-5)
    model(tokens).sum().backward()
    assert torch.equal(embedding.weight.grad[0], torch.zeros(4))  # padding does not learn
    assert embedding.weight.grad[1].abs().sum() > 0


def test_training_with_rounding_finds_weights_that_bear_it() -> None:
    """Three bits, where rounding hurts: what was trained with it is better in it than what was rounded afterwards.

    On average over several beginnings, because the last steps of one jump from grid point to grid point.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 8, generator=generator)
    target = torch.tanh(inputs @ torch.randn(8, 8, generator=generator)) @ torch.randn(8, 4, generator=generator)

    def loss_after(model: nn.Module, steps: int, learning_rate: float) -> float:
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, max(1, steps))
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), target).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return float(nn.functional.mse_loss(model(inputs), target))

    left = []  # of what rounding costs
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        exact = loss_after(model, 400, 1e-2)
        for name in ("0", "2"):
            made = of_same_shape(Int8Linear, model.get_submodule(name))
            made.bits = 3
            replace_module(model, name, made)
        rounded = loss_after(model, 0, 3e-3)
        left.append((loss_after(model, 400, 3e-3) - exact) / (rounded - exact))
    assert 0 < sum(left) / len(left) < 0.85
