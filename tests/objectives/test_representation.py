"""representation and logit_regression: the losses by hand, their windows, their gradients, and a run of equation 8."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from haystack_distill import Reader, ReaderTrainer, TrainingSettings
from haystack_distill.errors import DistilError
from haystack_distill.objectives import Labels, LogitRegression, ModelOutputs, OutputRequest, Representation
from haystack_distill.objectives.losses import log_odds_loss

INF = float("inf")
NARROW, WIDE = BertConfig(hidden_size=4, num_attention_heads=2), BertConfig(hidden_size=6, num_attention_heads=2)
BATCH = {
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "context_mask": torch.tensor([[1, 0, 1, 1], [1, 0, 1, 0]], dtype=torch.bool),
    "labelled": torch.tensor([True, False]),
    "weight": torch.ones(2),
}


def states(seed: int, width: int) -> torch.Tensor:
    return torch.randn(2, 4, width, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gelu(value: float) -> float:
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


def test_the_representation_by_hand() -> None:
    objective = Representation().objective(NARROW, WIDE)
    own, target = states(0, 4), states(1, 6)
    linear = objective.projection[0]
    values = objective(ModelOutputs(hidden_states=(own,)), ModelOutputs(hidden_states=(target,)), BATCH)
    total = 0.0
    for token in range(3):  # the fourth is padding
        projected = own[1, token] @ linear.weight.T + linear.bias
        total += sum((gelu(x) - y) ** 2 for x, y in zip(projected.tolist(), target[1, token].tolist(), strict=True))
    assert values["representation"].values[1].item() == pytest.approx(total / (3 * 6), rel=1e-5)
    first = Representation(tokens="first").objective(NARROW, WIDE)
    first.load_state_dict(objective.state_dict())
    projected = [gelu(x) for x in (own[1, 0] @ linear.weight.T + linear.bias).tolist()]
    by_hand = sum((x - y) ** 2 for x, y in zip(projected, target[1, 0].tolist(), strict=True)) / 6
    term = first(ModelOutputs(hidden_states=(own,)), ModelOutputs(hidden_states=(target,)), BATCH)["representation"]
    assert term.values[1].item() == pytest.approx(by_hand, rel=1e-5)
    reached = ModelOutputs(hidden_states=(objective.projection(own),))
    assert not objective(ModelOutputs(hidden_states=(own,)), reached, BATCH)["representation"].values.any()


def test_the_log_odds_by_hand() -> None:
    logits = torch.tensor([[math.log(0.2), 5.0, math.log(0.3), math.log(0.5)], [0.0, 5.0, -INF, 5.0]])
    predicted = torch.tensor([[1.0, 7.0, 2.0, 3.0], [4.0, 7.0, 7.0, 7.0]])
    odds = [math.log(p / (1 - p)) for p in (0.2, 0.3, 0.5)]
    by_hand = sum((x - y) ** 2 for x, y in zip([1.0, 2.0, 3.0], odds, strict=True)) / 3
    # In the second window one token has a score, probability 1: its log-odds are limited to 10.
    assert log_odds_loss(predicted, logits, BATCH["context_mask"]).tolist() == pytest.approx([by_hand, 36.0])
    targets = torch.tensor([[odds[0], 7.0, odds[1], odds[2]]])
    assert log_odds_loss(targets, logits[:1], BATCH["context_mask"][:1]).tolist() == pytest.approx([0.0], abs=1e-9)
    far = torch.tensor([[0.0, 0.0, -500.0, -500.0]])
    assert log_odds_loss(torch.tensor([[10.0, 0.0, -10.0, -10.0]]), far, BATCH["context_mask"][:1]).item() == 0


def test_the_logit_regression_is_that_of_its_own_head() -> None:
    objective = LogitRegression().objective(NARROW)
    own, teacher = states(0, 4), ModelOutputs(*torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(2)))
    values = objective(ModelOutputs(hidden_states=(own,)), teacher, BATCH)["logit_regression"].values
    predicted = objective.head(own)
    start = log_odds_loss(predicted[..., 0], teacher.start_logits, BATCH["context_mask"])
    end = log_odds_loss(predicted[..., 1], teacher.end_logits, BATCH["context_mask"])
    torch.testing.assert_close(values, (start + end) / 2)
    assert objective.student_request == OutputRequest(hidden_states=True)
    assert not objective.teacher_request.beyond_logits  # the teacher's logits come from disk


@pytest.mark.parametrize("method", [Representation, LogitRegression])
def test_windows_and_gradients(method: type) -> None:
    objective = method(windows="unlabelled").objective(NARROW, WIDE)
    (name,) = objective.weights
    assert objective.masks(BATCH)[name].tolist() == [False, True]
    assert method().objective(NARROW, WIDE).masks(BATCH)[name].tolist() == [True, True]
    own, target, logits = states(0, 4), states(1, 6), torch.randn(2, 4).requires_grad_()
    term = objective(ModelOutputs(hidden_states=(own,)), ModelOutputs(logits, logits, hidden_states=(target,)), BATCH)
    assert torch.equal(term[name].mask, objective.masks(BATCH)[name])
    term[name].values.sum().backward()
    assert target.grad is None
    assert logits.grad is None
    assert own.grad[0, 0].abs().min() > 0
    assert not own.grad[1, 3].any()  # padding
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())
    with pytest.raises(DistilError, match="windows must be"):
        method(windows="labelled")


def test_a_representation_without_a_teacher() -> None:
    with pytest.raises(DistilError, match="Representation needs a teacher with a configuration"):
        Representation().objective(NARROW, None)


def test_equation_8(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> None:
    """Labels on labelled windows, the teacher on the others, the student narrower than the teacher."""
    method = 10 * Labels() + 10 * LogitRegression(windows="unlabelled") + Representation(windows="unlabelled")
    content = json.loads(squad_file.read_text())
    for paragraph in content["data"][0]["paragraphs"][:2]:
        for qa in paragraph["qas"]:
            qa |= {"labelled": False, "answers": []}
    path = tmp_path / "transfer.json"
    path.write_text(json.dumps(content))
    student, teacher = tiny_reader(seed=1, num_hidden_layers=1, hidden_size=16), tiny_reader(num_hidden_layers=2)
    trainer = ReaderTrainer(
        student, settings=TrainingSettings(max_steps=2, batch_size=8, learning_rate=1e-3, progress=False, log_every=1)
    )
    history = [line for line in trainer.distil(teacher, path, method).history if "loss" in line]
    for line in history:
        parts = 10 * line["loss_labels"] + 10 * line["loss_logit_regression"] + line["loss_representation"]
        assert line["loss"] == pytest.approx(parts, rel=1e-3)
        assert min(line["loss_labels"], line["loss_logit_regression"], line["loss_representation"]) > 0
    assert len(history) == 2
    with pytest.raises(DistilError, match=r"all examples are labelled.*or set windows='all'"):
        trainer.distil(teacher, squad_file, method)
