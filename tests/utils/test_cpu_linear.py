"""Linear layers in bfloat16: autocast's values, with each frozen weight and shared input cast once."""

import pytest
import torch
from torch import Tensor, nn

from haystack_distill.utils.cpu_linear import KeptCasts


def _autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def _layers() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 8, bias=False)])


def _outputs(layers: nn.ModuleList, inputs: Tensor) -> Tensor:
    with _autocast():
        return torch.cat([layer(inputs) for layer in layers])


def test_values_are_those_of_autocast() -> None:
    layers, inputs = _layers(), torch.randn(3, 5, 16)
    with torch.no_grad():
        expected = _outputs(layers, inputs)
        with KeptCasts(layers):
            for _ in range(2):
                assert torch.equal(_outputs(layers, inputs), expected)
    assert expected.dtype == torch.bfloat16


def test_weights_of_other_models_may_change() -> None:
    layers, inputs = _layers(), torch.randn(3, 16)
    layers[0].weight.grad = torch.ones(8, 16)
    with torch.no_grad(), KeptCasts(nn.Linear(2, 2)):
        before = _outputs(layers, inputs)
        torch.optim.AdamW([layers[0].weight], lr=0.5, fused=True).step()
        inputs.add_(1)
        found = _outputs(layers, inputs)
    assert not torch.equal(found, before)
    with torch.no_grad():
        assert torch.equal(found, _outputs(layers, inputs))


def test_frozen_weights_are_cast_once() -> None:
    layers, inputs = _layers(), torch.randn(3, 16)
    with torch.no_grad(), KeptCasts(layers):
        before = _outputs(layers, inputs)
        layers[0].weight.mul_(2)  # against the rules
        assert torch.equal(_outputs(layers, inputs), before)


@pytest.mark.parametrize("kept", [False, True])
def test_gradients_reach_weights_and_inputs(kept: bool) -> None:
    layers, inputs = _layers(), torch.randn(3, 16, requires_grad=True)
    layers[2].weight.requires_grad_(False)
    expected = torch.autograd.grad(_outputs(layers, inputs).float().square().sum(), [inputs, *_trained(layers)])
    with KeptCasts():
        if kept:  # what was cast without gradients must not be taken
            with torch.no_grad():
                _outputs(layers, inputs)
        found = torch.autograd.grad(_outputs(layers, inputs).float().square().sum(), [inputs, *_trained(layers)])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.01 * other.norm()


def _trained(layers: nn.ModuleList) -> list[Tensor]:
    return [parameter for parameter in layers.parameters() if parameter.requires_grad]


def test_full_precision_is_left_alone() -> None:
    layers, inputs = _layers(), torch.randn(3, 16)
    casts = KeptCasts()
    with torch.no_grad(), casts:
        assert layers[0](inputs).dtype == torch.float32
        with _autocast():
            assert layers[0](inputs.double().float()).dtype == torch.bfloat16
        assert layers[0](inputs).dtype == torch.float32
    with _autocast(), torch.no_grad(), casts:
        assert torch.equal(layers[0].double()(inputs.double()), layers[0](inputs.double()))
