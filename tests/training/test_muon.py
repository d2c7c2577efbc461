"""Muon for matrices, AdamW for the rest, as one optimiser."""

import copy
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    ElectraConfig,
    ElectraForQuestionAnswering,
    MPNetConfig,
    MPNetForQuestionAnswering,
    PretrainedConfig,
)

from haystack_distill import DistilError, TrainingSettings
from haystack_distill.objectives import IntermediateLayers, Labels
from haystack_distill.training.muon import MuonAndAdamW, hidden_matrices
from haystack_distill.training.optimisation import is_plain, make_optimizer
from tests.training.helpers import MakeReader

SHAPE: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1.0)


def made(model: Any, **changed: Any) -> MuonAndAdamW:
    chosen: dict[str, Any] = {"optimizer": "muon", "learning_rate": 0.1, "weight_decay": 0.0} | changed
    settings = TrainingSettings(**chosen)
    assert not is_plain(settings)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    optimizer = make_optimizer(settings, model, Labels().objective(model.config), decayed, adamw)
    assert isinstance(optimizer, MuonAndAdamW)
    return optimizer


def with_gradients(model: Any) -> Any:
    """Random gradients; those of matrices have singular values from 1 to 4."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        gradient = torch.randn_like(parameter)
        if parameter.dim() == 2:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            gradient = left @ torch.linspace(1, 4, left.shape[1]).diag() @ right
        parameter.grad = gradient
    return model


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (ElectraConfig(embedding_size=4, **SHAPE), ElectraForQuestionAnswering),
        (MPNetConfig(**SHAPE), MPNetForQuestionAnswering),
    ],
)
def test_matrices_are_those_of_dense_layers_in_the_encoder(config: PretrainedConfig, kind: Any) -> None:
    model = kind(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in hidden_matrices(model)}
    assert found == {
        name for name in names.values() if ".layer." in name and name.endswith("weight") and "Norm" not in name
    }
    assert len(found) == 2 * 6  # not embeddings, their projection, the table of position biases, the head


def test_a_step_turns_matrices_by_the_direction_of_their_gradient_and_the_rest_by_its_sign(
    tiny_reader: MakeReader,
) -> None:
    model = with_gradients(tiny_reader().model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    made(model).step()
    matrices = {id(parameter) for parameter in hidden_matrices(model)}
    assert 0 < len(matrices) < len(before)
    for name, parameter in model.named_parameters():
        change = (parameter.detach() - before[name]) / -0.1
        assert parameter.grad is not None
        if id(parameter) not in matrices:
            torch.testing.assert_close(change, parameter.grad.sign(), atol=0.05, rtol=0)
            continue
        # Five Newton-Schulz steps make an orthogonal matrix only roughly: singular values of 0.7 to 1.2 in place of 1.
        left, _, right = torch.linalg.svd(parameter.grad, full_matrices=False)
        turned = left.mT @ change @ right.mT / (0.2 * max(change.shape) ** 0.5)
        assert torch.all((turned.diagonal() > 0.6) & (turned.diagonal() < 1.3)), name
        assert (turned - turned.diagonal().diag()).abs().max() < 0.05, name


def test_weight_decay_and_rates_reach_both(tiny_reader: MakeReader) -> None:
    model = tiny_reader().model
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = made(model, weight_decay=0.5, embedding_learning_rate=0.2)
    schedule = LambdaLR(optimizer, lambda _: 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05, 0.1}
    optimizer.step()
    schedule.step()
    for name, parameter in model.named_parameters():
        rate = 0.1 if "embeddings" in name else 0.05
        decay = 1 - rate * 0.5 if before[name].dim() > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * decay)


def test_the_state_of_both_parts_is_restored(tiny_reader: MakeReader) -> None:
    first, second = tiny_reader().model, tiny_reader().model
    optimizer = made(with_gradients(first))
    optimizer.step()
    second.load_state_dict(first.state_dict())
    again = made(with_gradients(second))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {tuple(kept) for kept in again.state.values()} == {("momentum_buffer",), ("step", "exp_avg", "exp_avg_sq")}
    assert len(again.state) == len(list(second.parameters()))
    optimizer.param_groups[0]["lr"] = again.param_groups[0]["lr"] = 0.3  # a schedule after the restart
    optimizer.step()
    again.step()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_projections_and_weights_that_are_not_trained(tiny_reader: MakeReader) -> None:
    student, teacher = tiny_reader(hidden_size=16).model, tiny_reader().model
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(".layer.3." in name)
    objective = IntermediateLayers(attention_loss_weight=0).objective(student.config, teacher.config)
    optimizer = make_optimizer(TrainingSettings(optimizer="muon"), student, objective, [], adamw)
    muon, rest = optimizer._parts  # type: ignore[attr-defined]
    in_muon = [parameter for group in muon.param_groups for parameter in group["params"]]
    in_rest = {id(parameter) for group in rest.param_groups for parameter in group["params"]}
    assert len(in_muon) == 6
    assert all(parameter.requires_grad for parameter in in_muon)
    assert {id(parameter) for parameter in objective.parameters()} <= in_rest


def test_what_muon_cannot_train_is_refused(tiny_reader: MakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_reader().model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("qa_outputs"))
    with pytest.raises(DistilError, match="matrices of the encoder's layers, and none is trained; use 'adamw'"):
        made(model)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(DistilError, match=r"needs PyTorch 2\.9 or newer"):
        made(tiny_reader().model)
