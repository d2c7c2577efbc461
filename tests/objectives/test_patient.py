"""patient: the loss by hand, its mappings, its parts, and what is refused."""

import pytest
import torch
from transformers import BertConfig

from haystack_distill.errors import DistilError
from haystack_distill.objectives import ModelOutputs, Patient, PredictionLayer
from haystack_distill.objectives.losses import cosine_loss, normalised_state_loss

BATCH = {
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "context_mask": torch.tensor([[1, 0, 1, 1, 0], [1, 0, 1, 0, 0]], dtype=torch.bool),
    "start_positions": torch.tensor([2, -1]),
    "end_positions": torch.tensor([3, -1]),
    "labelled": torch.tensor([True, False]),
    "weight": torch.ones(2),
}


def config(layers: int, width: int = 6) -> BertConfig:
    return BertConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=2)


def outputs(seed: int, layers: int) -> ModelOutputs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    states = tuple(random(2, 5, 6) for _ in range(layers + 1))
    return ModelOutputs(random(2, 5), random(2, 5), hidden_states=states)


def test_the_distance_by_hand() -> None:
    student = torch.tensor([[[3.0, 4.0], [0.0, 5.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, -2.0], [-1.0, 0.0]]])
    tokens = torch.tensor([[1, 1, 0]])
    first, second = (0.6 - 1) ** 2 + 0.8**2, 2.0**2
    assert normalised_state_loss(student, teacher, tokens).tolist() == pytest.approx([(first + second) / 2])
    assert normalised_state_loss(7 * teacher, teacher, tokens).tolist() == pytest.approx([0.0])
    one, other = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = BATCH["attention_mask"]
    torch.testing.assert_close(normalised_state_loss(one, other, mask), 2 * cosine_loss(one, other, mask))


def test_the_mappings_of_the_paper() -> None:
    def mapping(name: object) -> list[int | None]:
        return Patient(layer_mapping=name).objective(config(6), config(12)).layer_mapping

    assert mapping("skip") == [2, 4, 6, 8, 10, None]
    assert mapping("last") == [7, 8, 9, 10, 11, None]
    assert mapping("uniform") == [2, 4, 6, 8, 10, 12]
    with pytest.raises(DistilError, match="leaves out the only layer of the student"):
        Patient(layer_mapping="last").objective(config(1), config(12))


def test_its_parts() -> None:
    student, teacher = outputs(0, 2), outputs(1, 4)
    method = Patient(temperature=3.0, distillation_loss_weight=0.25, patient_loss_weight=7.0)
    objective = method.objective(config(2), config(4))
    assert objective.weights == {"labels": 0.75, "distillation": 0.25 * 9, "patient": 7.0}
    terms = objective(student, teacher, BATCH)
    known = PredictionLayer(3.0).objective()(student, teacher, BATCH)
    for name in ("labels", "distillation"):
        torch.testing.assert_close(terms[name].values, known[name].values)
        assert torch.equal(terms[name].mask, known[name].mask)
    states = student.hidden_states[1], teacher.hidden_states[2]
    torch.testing.assert_close(terms["patient"].values, normalised_state_loss(*states, BATCH["attention_mask"]))
    assert terms["patient"].mask.all()
    first = Patient(tokens="first").objective(config(2), config(4))(student, teacher, BATCH)["patient"].values
    tokens = torch.zeros(2, 5)
    tokens[:, 0] = 1
    torch.testing.assert_close(first, normalised_state_loss(*states, tokens))


def test_what_has_no_weight_is_neither_needed_nor_computed() -> None:
    student, teacher = outputs(0, 2), outputs(1, 4)
    for weight, names in [(0, {"labels", "patient"}), (1, {"distillation", "patient"})]:
        objective = Patient(distillation_loss_weight=weight).objective(config(2), config(4))
        assert objective(student, teacher, BATCH).keys() == objective.weights.keys() == names
        assert objective.masks(BATCH).keys() == names
        assert objective.teacher_request.logits is bool(weight)


def test_the_gradient_reaches_the_student_alone() -> None:
    student, teacher = outputs(0, 2), outputs(1, 4)
    terms = Patient().objective(config(2), config(4))(student, teacher, BATCH)
    sum(term.values.sum() for term in terms.values()).backward()
    states = student.hidden_states[1]
    assert states.grad[0].abs().min() > 0
    assert not states.grad[1, 3:].any()  # padding
    assert all(tensor.grad is None for tensor in (teacher.start_logits, teacher.end_logits, *teacher.hidden_states))


def test_what_does_not_fit() -> None:
    with pytest.raises(DistilError, match="Patient needs a teacher with a configuration"):
        Patient().objective(config(2), None)
    with pytest.raises(DistilError, match=r"6 wide and the teacher 8.*use the method intermediate_layers or repres"):
        Patient().objective(config(2), config(4, width=8))
    with pytest.raises(DistilError, match=r"so temperature=3\.0 would have no effect; leave it at 2\.0"):
        Patient(temperature=3.0, distillation_loss_weight=0)
    for options in ({"tokens": "last"}, {"patient_loss_weight": 0}, {"distillation_loss_weight": 2}):
        with pytest.raises(DistilError, match=next(iter(options))):
            Patient(**options)
