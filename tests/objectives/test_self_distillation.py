"""self_distillation: the losses by hand, at identity, with padding, and where the gradient goes."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill import Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, run_model
from haystack_distill.objectives import Labels, Method, SelfDistillation
from haystack_distill.objectives.losses import binary_divergence, level_loss
from haystack_distill.objectives.self_distillation import answer_probability

MakeReader = Callable[..., Reader]


def batch_of(length: int = 3) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([[1] * 3 + [0] * (length - 3)])
    one = torch.ones(1)
    return {
        "attention_mask": tokens,
        "context_mask": tokens.bool(),
        "weight": one,
        "labelled": one.bool(),
        "start_positions": torch.tensor([1]),
        "end_positions": torch.tensor([2]),
    }


def outputs_of(exits: list[list[float]], last: list[float], matches: list[float] | None = None) -> ModelOutputs:
    """The same logits for start and end."""
    rows = [(torch.tensor([row]), torch.tensor([row])) for row in exits]
    odds = tuple(torch.tensor([one]) for one in matches or [0.0])
    return ModelOutputs(torch.tensor([last]), torch.tensor([last]), exits=tuple(rows), matches=odds)


def test_the_losses_by_hand(tiny_reader: MakeReader) -> None:
    student = students.early_exit(tiny_reader()).model.config
    objective = SelfDistillation(label_loss_weight=0.5).objective(student)
    assert objective.weights == {"exits": 1.0, "level": 0.1, "matches": 1.0, "labels": 0.5}
    third, half = math.log(1 / 3), math.log(1 / 2)
    last = [half, math.log(1 / 4), math.log(1 / 4)]
    branch = [third + 2, third + 2, third + 2]  # uniform, and 2 higher
    terms = objective(outputs_of([branch, last], last, matches=[0.0, math.log(3)]), None, batch_of())
    # The last layer is at the no-answer twice with probability 1/4; the matchers have 1/2, and the same 3/4.
    assert terms["matches"].values.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    divergence = 0.5 * (half - third) + 0.5 * (math.log(1 / 4) - third)
    assert terms["exits"].values.tolist() == pytest.approx([divergence])  # of the first branch; the second is identical
    assert terms["level"].values.tolist() == pytest.approx([4.0])
    # The labels are at 1 and 2, where the last layer has 1/4.
    assert terms["labels"].values.tolist() == pytest.approx([-third + math.log(4)])
    with_backbone = SelfDistillation(label_loss_weight=0.5, backbone=True).objective(student)
    terms = with_backbone(outputs_of([branch, last], last), None, batch_of())
    assert terms["labels"].values.tolist() == pytest.approx([-third + 2 * math.log(4)])


def test_zero_at_identity_and_blind_to_padding(tiny_reader: MakeReader) -> None:
    objective = SelfDistillation(temperature=2.0).objective(students.early_exit(tiny_reader()).model.config)
    assert objective.weights["exits"] == 4
    logits, other = [1.0, -2.0, 0.5], [0.1, 0.2, 0.3]
    held = answer_probability(torch.tensor([logits]), torch.tensor([logits]), torch.ones(1, 3).bool())
    same = outputs_of([logits], logits, matches=[float(held.logit())])
    for term in objective(same, None, batch_of()).values():
        assert term.values.tolist() == pytest.approx([0.0], abs=1e-6)
    short = objective(outputs_of([other], logits), None, batch_of())
    padded = objective(outputs_of([[*other, 9.0, -9.0]], [*logits, 5.0, 7.0]), None, batch_of(5))
    for name, term in short.items():
        assert torch.allclose(term.values, padded[name].values)


def test_terms_without_weight_are_left_out(tiny_reader: MakeReader) -> None:
    exits = outputs_of([[0.0, 1.0, 2.0]], [1.0, 2.0, 3.0])
    for match_size, weight, terms in ((0, 1.0, {"exits"}), (4, 0.0, {"exits"}), (4, 1.0, {"exits", "matches"})):
        config = students.early_exit(tiny_reader(), match_size=match_size).model.config
        method = SelfDistillation(level_loss_weight=0.0, match_loss_weight=weight)
        assert set(method.objective(config)(exits, None, batch_of())) == terms


def test_a_weight_of_matchers_that_are_not_there(tiny_reader: MakeReader) -> None:
    config = students.early_exit(tiny_reader(), match_size=0).model.config
    with pytest.raises(
        DistilError, match=r"no matchers \(match_size is 0\), so match_loss_weight=7.0 would have no effect"
    ):
        SelfDistillation(match_loss_weight=7.0).objective(config)


def test_the_level_loss() -> None:
    own = torch.zeros(1, 3, requires_grad=True)
    target = torch.ones(1, 3, requires_grad=True)
    loss = level_loss(own, target, torch.tensor([[1, 1, 0]]))
    assert loss.tolist() == pytest.approx([1.0])
    loss.sum().backward()
    assert target.grad is None
    assert own.grad.tolist() == [pytest.approx([-1.0, -1.0, 0.0])]


def test_the_divergence_of_two_outcomes() -> None:
    odds = torch.tensor([0.0, 2.0, -50.0], requires_grad=True)
    target = torch.tensor([0.25, 1.0, 0.0], requires_grad=True)
    loss = binary_divergence(odds, target)
    expected = [0.25 * math.log(0.5) + 0.75 * math.log(1.5), math.log1p(math.exp(-2)), 0.0]
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)
    loss.sum().backward()
    assert target.grad is None
    assert odds.grad.tolist() == pytest.approx([0.25, 1 / (1 + math.exp(-2)) - 1, 0.0], abs=1e-6)


@pytest.mark.parametrize("backbone", [False, True])
def test_where_the_gradient_goes(backbone: bool, tiny_reader: MakeReader) -> None:
    student = students.early_exit(tiny_reader())
    objective = SelfDistillation(backbone=backbone).objective(student.model.config)
    batch = batch_of()
    # A question of two tokens, whose weights matter.
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    batch |= inputs
    student.model.train()
    outputs = run_model(student.model, inputs, objective.student_request)
    assert student.model.training
    assert outputs.start_logits.requires_grad is backbone
    sum(term.values.sum() for term in objective(outputs, None, batch).values()).backward()
    learns = {
        name for name, weight in student.model.named_parameters() if weight.grad is not None and weight.grad.any()
    }
    own = {name for name, _ in student.model.named_parameters() if name.startswith(("branches.", "matchers."))} - {
        f"matchers.{layer}.weight.bias" for layer in range(4)
    }  # it moves equal weights alike
    assert own <= learns
    assert any(name.startswith("bert.encoder.layer.2.") for name in learns) is backbone
    assert not any(name.startswith("qa_outputs") for name in learns)  # its outputs are the targets


def test_frozen_layers_give_the_same_targets_with_dropout(tiny_reader: MakeReader) -> None:
    student = students.early_exit(tiny_reader())
    objective = SelfDistillation().objective(student.model.config)
    inputs = {"input_ids": torch.tensor([[2, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    expected = student.model(**inputs).start_logits
    student.model.train()
    assert torch.equal(run_model(student.model, inputs, objective.student_request).start_logits, expected)


def test_a_run_changes_the_branches_alone(tiny_reader: MakeReader, squad_file: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(max_steps=2, batch_size=4, progress=False, head_learning_rate=0.01, precision="fp32")
    for method, frozen in ((SelfDistillation(), True), (SelfDistillation(backbone=True) + Labels(), False)):
        student = students.early_exit(tiny_reader())
        before = {name: weight.clone() for name, weight in student.model.state_dict().items()}
        ReaderTrainer(student, None, settings, cache_dir=tmp_path / "cache").distil(None, squad_file, method)
        changed = {name for name, weight in student.model.state_dict().items() if not torch.equal(weight, before[name])}
        assert changed
        assert all(name.startswith(("branches.", "matchers.")) for name in changed) is frozen


def test_a_student_without_early_exits(tiny_reader: MakeReader) -> None:
    with pytest.raises(DistilError, match=r"a 'bert' model has no early exits; make a reader that has with students"):
        SelfDistillation().objective(tiny_reader().model.config)
    for options in ({"backbone": 1}, {"temperature": 0}, {"level_loss_weight": -1}, {"match_loss_weight": -1}):
        with pytest.raises(DistilError, match=next(iter(options))):
            SelfDistillation(**options)


def test_what_teaches_nothing(tiny_reader: MakeReader, squad_file: Path) -> None:
    """Branches do not learn random answers, and a last layer does not follow its branches alone."""

    def distil(student: Reader, method: Method) -> None:
        settings = TrainingSettings(max_steps=1, batch_size=4, progress=False)
        ReaderTrainer(student, settings=settings).distil(None, squad_file, method)

    untrained = tiny_reader()
    untrained.untrained = ("qa_outputs.weight",)
    student = students.early_exit(untrained)
    with pytest.raises(DistilError, match=r"whose answers are random: .*qa_outputs\.weight; train the student"):
        distil(student, SelfDistillation())
    with pytest.raises(DistilError, match=r"self_distillation with backbone=True .*set label_loss_weight"):
        distil(student, SelfDistillation(backbone=True))
    for method in (SelfDistillation(backbone=True, label_loss_weight=1.0), SelfDistillation(backbone=True) + Labels()):
        distil(student, method)
