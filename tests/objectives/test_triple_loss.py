"""triple_loss: its parts, what is left out with a weight of 0, gradients, and what does not fit."""

import pytest
import torch
from transformers import BertConfig

from haystack_distill.errors import DistilError
from haystack_distill.objectives import ModelOutputs, OutputRequest, PredictionLayer, TripleLoss
from haystack_distill.objectives.losses import cosine_loss

CONFIG, WIDE = BertConfig(hidden_size=6, num_attention_heads=2), BertConfig(hidden_size=8, num_attention_heads=2)
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
    shapes = [(2, 5), (2, 5), (2, 5, 6), (2, 5, 6)]
    start, end, *states = (torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes)
    return ModelOutputs(start, end, hidden_states=tuple(states))


def test_its_parts_and_gradients() -> None:
    student, teacher, objective = outputs(0), outputs(1), TripleLoss(temperature=3.0).objective(CONFIG, CONFIG)
    assert objective.weights == {"soft_targets": 45.0, "labels": 2.0, "cosine": 1.0}
    terms = objective(student, teacher, BATCH)
    known = PredictionLayer(3.0).objective()(student, teacher, BATCH)
    torch.testing.assert_close(terms["soft_targets"].values, known["distillation"].values)
    torch.testing.assert_close(terms["labels"].values, known["labels"].values)
    states = student.hidden_states[-1], teacher.hidden_states[-1]
    torch.testing.assert_close(terms["cosine"].values, cosine_loss(*states, BATCH["attention_mask"]))
    assert {name: term.mask.tolist() for name, term in terms.items()} == {
        "soft_targets": [True, True],
        "labels": [True, False],
        "cosine": [True, True],
    }
    sum(term.values.sum() for term in terms.values()).backward()
    assert all(tensor.grad is None for tensor in (teacher.start_logits, teacher.end_logits, *teacher.hidden_states))
    assert student.hidden_states[-1].grad[0].abs().min() > 0
    assert not student.hidden_states[-1].grad[1, 3:].any()  # padding
    assert not student.start_logits.grad[1, 3:].any()


@pytest.mark.parametrize(
    ("options", "names", "teacher", "student"),
    [
        ({"cosine_weight": 0}, {"soft_targets", "labels"}, OutputRequest(logits=True), OutputRequest(logits=True)),
        (
            {"soft_target_weight": 0, "label_weight": 0},
            {"cosine"},
            OutputRequest(hidden_states=True),
            OutputRequest(hidden_states=True),
        ),
        ({"soft_target_weight": 0, "cosine_weight": 0}, {"labels"}, OutputRequest(), OutputRequest(logits=True)),
    ],
)
def test_a_weight_of_zero(options: dict, names: set[str], teacher: OutputRequest, student: OutputRequest) -> None:
    objective = TripleLoss(**options).objective(CONFIG, CONFIG)
    assert objective.weights.keys() == objective(outputs(0), outputs(1), BATCH).keys() == names
    assert objective.masks(BATCH).keys() == names
    assert (objective.teacher_request, objective.student_request) == (teacher, student)


def test_what_does_not_fit() -> None:
    with pytest.raises(DistilError, match=r"6 wide and the teacher 8.*set cosine_weight=0, or use representation"):
        TripleLoss().objective(CONFIG, WIDE)
    with pytest.raises(DistilError, match="TripleLoss needs a teacher with a configuration"):
        TripleLoss().objective(CONFIG, None)
    assert TripleLoss(cosine_weight=0).objective(CONFIG, WIDE).weights
    with pytest.raises(DistilError, match=r"so temperature=3\.0 would have no effect; leave it at 2\.0"):
        TripleLoss(temperature=3.0, soft_target_weight=0)
    with pytest.raises(DistilError, match="there is nothing to learn"):
        TripleLoss(soft_target_weight=0, label_weight=0, cosine_weight=0)
