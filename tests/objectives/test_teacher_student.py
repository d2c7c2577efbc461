"""teacher_student: its parts and options; TeacherStudentLoss by hand, in a plain loop and in a Trainer of transformers."""

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainingArguments

from haystack_distill import Reader
from haystack_distill.errors import DistilError
from haystack_distill.objectives import ModelOutputs, PredictionLayer, TeacherStudent, TeacherStudentLoss

BATCH = {
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "context_mask": torch.tensor([[1, 0, 1, 1, 0], [1, 0, 1, 0, 0]], dtype=torch.bool),
    "start_positions": torch.tensor([2, -1]),
    "end_positions": torch.tensor([3, -1]),
    "labelled": torch.tensor([True, False]),
    "weight": torch.ones(2),
}


def outputs(seed: int) -> ModelOutputs:
    generator = torch.Generator().manual_seed(seed)
    return ModelOutputs(*(torch.randn(2, 5, generator=generator).requires_grad_() for _ in range(2)))


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "known", "weights"),
    [
        (TeacherStudent(), PredictionLayer(), {"labels": 1.0, "distillation": 0.1}),
        (TeacherStudent(2, 3, temperature=2.0), PredictionLayer(2.0), {"labels": 2.0, "distillation": 3.0}),
        (
            TeacherStudent(temperature=3.0, temperature_squared=True),
            PredictionLayer(3.0),
            {"labels": 1.0, "distillation": pytest.approx(0.9)},
        ),
        (
            TeacherStudent(loss_function="mse"),
            PredictionLayer(distillation_loss="mse"),
            {"labels": 1.0, "distillation": 0.1},
        ),
        (TeacherStudent(loss_w=0), PredictionLayer(), {"distillation": 0.1}),
        (TeacherStudent(dist_w=0), PredictionLayer(), {"labels": 1.0}),
    ],
)
def test_its_parts(method: TeacherStudent, known: PredictionLayer, weights: dict[str, float]) -> None:
    student, teacher, objective = outputs(0), outputs(1), method.objective()
    terms, expected = objective(student, teacher, BATCH), known.objective()(student, teacher, BATCH)
    assert objective.weights == weights
    assert terms.keys() == weights.keys()
    assert bool(objective.teacher_request) is ("distillation" in weights)
    for name, term in terms.items():
        torch.testing.assert_close(term.values, expected[name].values)
        assert torch.equal(term.mask, expected[name].mask)
        assert torch.equal(term.mask, objective.masks(BATCH)[name])
    sum(term.values.sum() for term in terms.values()).backward()
    assert teacher.start_logits.grad is None
    assert not student.start_logits.grad[1, 3:].any()  # padding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_w": 0, "dist_w": 0}, "there is nothing to learn: one of loss_w and dist_w"),
        ({"loss_function": "kld"}, 'loss_function must be "kl" or "mse", not \'kld\''),
        ({"temperature": 0}, "temperature must be a number above 0"),
        ({"dist_w": 0, "temperature": 2.0}, "dist_w=0 leaves out the teacher, so temperature=2.0 would"),
        ({"dist_w": 0, "loss_function": "mse"}, "so loss_function='mse' would have no effect"),
        ({"loss_function": "mse", "temperature": 2.0}, "compares unscaled logits, so temperature=2.0 would"),
        ({"temperature_squared": True}, "T\\^2 is 1 at temperature=1, so temperature_squared=True would"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    for make in (TeacherStudent, lambda **given: TeacherStudentLoss(nn.Linear(2, 2), **given)):
        with pytest.raises(DistilError, match=message):
            make(**options)


# --- the loss for other loops ----------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    loss, teacher = torch.tensor(2.0), torch.tensor([[0.0, math.log(3)], [1.0, 2.0]])
    student = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    made = TeacherStudentLoss(nn.Identity(), dist_w=0.5, loss_w=3.0)
    assert made.distill_loss(loss, student, teacher).item() == pytest.approx(3 * 2 + 0.5 * (kl + 0) / 2)
    hidden = torch.tensor([False, True])  # the same where the logits are equal
    assert made.distill_loss(loss, student, teacher, hidden).item() == pytest.approx(6.0)
    assert made.distill_loss(loss, student, teacher, torch.zeros(2)).item() == pytest.approx(6.0)
    mse = TeacherStudentLoss(nn.Identity(), loss_function="mse")
    assert mse.distill_loss(loss, student, teacher).item() == pytest.approx(2 + 0.1 * math.log(3) ** 2 / 4)
    soft = TeacherStudentLoss(nn.Identity(), temperature=2.0, temperature_squared=True)
    p = math.sqrt(3) / (1 + math.sqrt(3))
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert soft.distill_loss(loss, student, teacher).item() == pytest.approx(2 + 0.1 * 4 * kl / 2)


def test_several_heads() -> None:
    loss, made = torch.tensor(2.0), TeacherStudentLoss(nn.Identity(), dist_w=0.5)
    one, other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    alone = [made.distill_loss(loss, one, other), made.distill_loss(loss, one, one)]
    both = made.distill_loss_dict(loss, {"a": one, "b": one}, {"b": one, "a": other})
    torch.testing.assert_close(both, sum(alone) / 2)
    masked = made.distill_loss_dict(loss, {"a": one}, {"a": other}, {"a": torch.tensor([True, False, False])})
    torch.testing.assert_close(masked, made.distill_loss(loss, one[:1], other[:1]))
    with pytest.raises(DistilError, match=r"for the heads \['a'\] and the teacher for \['b'\]; give both the same"):
        made.distill_loss_dict(loss, {"a": one}, {"b": other})
    with pytest.raises(DistilError, match=r"shapes \(3, 4\), \(2, 4\) and None; give logits of the same shape"):
        made.distill_loss(loss, one, other[:2])


def test_the_teachers_logits(tiny_reader: Callable[..., Reader]) -> None:
    class Teacher(nn.Module):
        """Returns what it was made with, for any arguments."""

        def __init__(self, outputs: object) -> None:
            super().__init__()
            self.outputs, self.calls = outputs, []
            self.dropout = nn.Dropout()

        def forward(self, *arguments: object, **named: object) -> object:
            self.calls.append((arguments, named, self.dropout.training, torch.is_grad_enabled()))
            return self.outputs

    logits = torch.ones(2, 3)
    for answer in (logits, (logits, "more"), {"loss": None, "logits": logits}, SimpleNamespace(logits=logits)):
        teacher = Teacher(answer)
        assert TeacherStudentLoss(teacher).teacher_logits({"ids": 1, "labels": 2}) is logits
        assert teacher.calls == [((), {"ids": 1}, False, False)]  # in evaluation mode, without gradients
        assert teacher.dropout.training
    for inputs, expected in (((1, 2), (1, 2)), (logits, (logits,))):
        TeacherStudentLoss(teacher).teacher_logits(inputs)
        assert teacher.calls.pop()[0] == expected
    with pytest.raises(DistilError, match="the teacher returns a str without logits; call the teacher yourself"):
        TeacherStudentLoss(Teacher("no logits")).teacher_logits(1)
    reader = tiny_reader(num_hidden_layers=1).model
    found = TeacherStudentLoss(reader).teacher_logits({"input_ids": torch.ones(1, 4, dtype=torch.long)})
    assert {name: value.shape for name, value in found.items()} == {"start_logits": (1, 4), "end_logits": (1, 4)}


def test_options_of_a_command_line() -> None:
    parser = argparse.ArgumentParser()
    TeacherStudentLoss.add_args(parser)
    assert TeacherStudentLoss.from_args(nn.Identity(), parser.parse_args([])).options == TeacherStudent()
    given = ["--kd_temp", "2", "--kd_dist_w", "0.7", "--kd_student_w", "0.3", "--kd_temp_squared"]
    made = TeacherStudentLoss.from_args(nn.Identity(), parser.parse_args(given))
    assert made.options == TeacherStudent(0.3, 0.7, temperature=2.0, temperature_squared=True)
    with pytest.raises(SystemExit):
        parser.parse_args(["--kd_loss_fn", "kld"])


def test_a_plain_loop() -> None:
    """With the teacher alone a student of another kind comes to agree with it."""
    torch.manual_seed(0)
    teacher = nn.Linear(4, 3)
    teacher.weight.data *= 3
    student = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    distillation = TeacherStudentLoss(teacher, dist_w=1.0, loss_w=0.1, loss_function="mse")
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    inputs, wrong = torch.randn(64, 4), torch.zeros(64, dtype=torch.long)
    before = teacher.weight.clone()
    for _ in range(150):
        logits = student(inputs)
        loss = cross_entropy(logits, wrong)
        optimiser.zero_grad()
        distillation.distill_loss(loss, logits, distillation.teacher_logits(inputs)).backward()
        optimiser.step()
    agreed = student(inputs).argmax(dim=1) == teacher(inputs).argmax(dim=1)
    assert agreed.float().mean() > 0.9
    assert torch.equal(teacher.weight, before)
    assert teacher.weight.grad is None


def test_a_batch_without_labels() -> None:
    """Its own loss is NaN, as cross entropy is where every target is ignored."""
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    own = cross_entropy(student, torch.full((4,), -100))
    assert own.isnan()
    alone = TeacherStudentLoss(nn.Linear(4, 3), dist_w=1.0, loss_w=0.0).distill_loss(own, student, teacher)
    assert alone.item() == pytest.approx(
        torch.nn.functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean").item(), rel=1e-5
    )
    alone.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def _tagger(layers: int) -> BertForTokenClassification:
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForTokenClassification(
        BertConfig(vocab_size=20, num_hidden_layers=layers, max_position_embeddings=8, **shape, **dropout)
    )


class _Sentences(Dataset):
    """Eight sentences of four words and a padding."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = torch.tensor([0, 1, 2, index % 3, -100])
        mask = torch.tensor([1, 1, 1, 1, 0])
        return {"input_ids": torch.tensor([1, 2, 3, 4 + index, 0]), "attention_mask": mask, "labels": labels}


def _train(student: nn.Module, distillation: TeacherStudentLoss, **options: Any) -> list[tuple[float, float]]:
    """Train in somebody else's Trainer, as the docs have it; own loss and total of each pass."""
    losses = []

    class DistillingTrainer(Trainer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.model_accepts_loss_kwargs = False

        def compute_loss(
            self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: object = None
        ) -> torch.Tensor:
            outputs = model(**inputs)
            mask = inputs["attention_mask"].bool()
            loss = distillation.distill_loss(outputs.loss, outputs.logits, distillation.teacher_logits(inputs), mask)
            losses.append((outputs.loss.item(), loss.item()))
            return loss

    shared = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    DistillingTrainer(student, TrainingArguments(**shared, **options), train_dataset=_Sentences()).train()
    return losses


def test_somebody_elses_trainer(tmp_path: Path) -> None:
    """A Trainer of transformers whose compute_loss adds the teacher, at words that are no padding."""
    torch.manual_seed(0)
    teacher, student = _tagger(2), _tagger(1)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    distillation = TeacherStudentLoss(teacher, dist_w=1.0)
    losses = _train(student, distillation, output_dir=str(tmp_path), max_steps=3, learning_rate=1e-2)
    assert len(losses) == 3
    assert all(total > own > 0 for own, total in losses)
    assert losses[-1][1] < losses[0][1]
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_gradient_accumulation_in_somebody_elses_trainer(tmp_path: Path) -> None:
    """Two halves of a batch move the weights as the batch does: the Trainer divides the loss, once."""
    torch.manual_seed(0)
    student, distillation = _tagger(1), TeacherStudentLoss(_tagger(2), dist_w=1.0)
    moved = []
    for size, steps in ((8, 1), (4, 2)):
        one = copy.deepcopy(student)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        _train(one, distillation, output_dir=str(tmp_path), max_steps=1, learning_rate=0.1, max_grad_norm=0, **options)
        moved.append([after - before for after, before in zip(one.parameters(), student.parameters(), strict=True)])
    assert any(change.abs().max() > 1e-4 for change in moved[0])
    torch.testing.assert_close(moved[1], moved[0])


@pytest.mark.parametrize("loss_function", ["kl", "mse"])
def test_a_mask_of_logits(loss_function: str) -> None:
    """The tokens of a span head are its classes: padding adds nothing, and gets no gradient."""
    own, target = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)), torch.randn(2, 7)
    made, mask = TeacherStudentLoss(nn.Linear(1, 1), loss_function=loss_function), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    padded, loss = own.clone().requires_grad_(), torch.tensor(1.0)
    rows = [made.distill_loss(loss, own[:1], target[:1]), made.distill_loss(loss, own[1:, :4], target[1:, :4])]
    found = made.distill_loss(loss, padded, target, mask)
    torch.testing.assert_close(found, sum(rows) / 2)
    found.backward()
    assert padded.grad is not None
    assert not padded.grad[~mask].any()
    assert padded.grad[mask].all()
    nothing = made.distill_loss(loss, own, target, torch.zeros(2, 7, dtype=torch.bool))
    assert nothing.item() == 1.0
