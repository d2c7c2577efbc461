"""ContextualRelations: pairs and angles by hand and by plain loops, widths that differ, gradients, padding, errors."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import pad
from transformers import BertConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.bilstm_config import BiLstmConfig
from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives import ContextualRelations, Linear, PredictionLayer
from haystack_distill.objectives.contextual_relations import (
    layer_angle_loss,
    layer_pair_loss,
    word_angle_loss,
    word_pair_loss,
)
from haystack_distill.objectives.objective import CORPUS, QUESTIONS
from tests.objectives.helpers import batch, config, model, run

NONE = {f"{name}_loss_weight": 0 for name in ("word_pair", "word_angle", "layer_pair", "layer_angle")}


def states(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(first, second):
    return (first @ second / (first.norm() * second.norm())).item()


def pair_divergence(student, teacher):
    """The mean over points of KL(teacher || student) of the softmaxes over the cosines with the other points."""
    total = 0.0
    for i in range(len(student)):
        p, q = (
            torch.softmax(torch.tensor([cosine(points[i], points[j]) for j in range(len(points)) if j != i]), dim=0)
            for points in (teacher, student)
        )
        total += (p * (p / q).log()).sum().item()
    return total / len(student)


def angle_difference(student, teacher, reach=math.inf):
    """The mean squared difference of the cosines of the angles at a point between two that are at most `reach` away."""
    squares = []
    for at, one, other in itertools.permutations(range(len(student)), 3):
        if abs(one - at) <= reach and abs(other - at) <= reach:
            own, target = (
                cosine(points[one] - points[at], points[other] - points[at]) for points in (student, teacher)
            )
            squares.append((own - target) ** 2)
    return sum(squares) / len(squares)


def test_three_words_by_hand():
    """At right angles all cosines are 0; where the second word repeats the first, its cosine with it is 1."""
    student = torch.tensor([[[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]]])
    teacher = torch.tensor([[[5.0, 0], [4.0, 0], [0, 1.0]]])
    p = math.e / (1 + math.e)  # of the repeated word, beside one at a right angle
    certain = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    mask = torch.ones(1, 3)
    assert word_pair_loss(student, teacher, mask).tolist() == pytest.approx([2 * certain / 3])
    # Angles at the words: the student's (1, 4, 9) with cosines from the squared sides 5, 13, 10 of its triangle.
    own = (1 / math.sqrt(5 * 10), 4 / math.sqrt(5 * 13), 9 / math.sqrt(10 * 13))
    target = (5 / math.sqrt(26), -4 / math.sqrt(17), (20 + 1) / math.sqrt(26 * 17))
    expected = sum((a - b) ** 2 for a, b in zip(own, target, strict=True)) / 3
    assert word_angle_loss(student, teacher, mask, 2).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("reach", [1, 2, 10])
def test_words_as_the_plain_loops(reach):
    student, teacher, mask = states(2, 7, 6), states(2, 7, 4, seed=1), batch()["attention_mask"]
    for row, length in enumerate((7, 4)):
        own, target = student[row, :length], teacher[row, :length]
        pairs, angles = word_pair_loss(student, teacher, mask), word_angle_loss(student, teacher, mask, reach)
        assert pairs[row].item() == pytest.approx(pair_divergence(own, target), rel=1e-4)
        assert angles[row].item() == pytest.approx(angle_difference(own, target, reach), rel=1e-4)


def test_layers_as_the_plain_loops():
    student, teacher, mask = states(2, 5, 4, 6), states(2, 5, 4, 3, seed=1), torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    for row, length in enumerate((5, 2)):
        tokens = [(student[row, token], teacher[row, token]) for token in range(length)]
        pairs, angles = layer_pair_loss(student, teacher, mask), layer_angle_loss(student, teacher, mask)
        assert pairs[row].item() == pytest.approx(sum(pair_divergence(*token) for token in tokens) / length, rel=1e-4)
        assert angles[row].item() == pytest.approx(sum(angle_difference(*token) for token in tokens) / length, rel=1e-4)


def test_what_shifts_and_turns_all_states_changes_no_angle():
    """Relations are those of the states to each other: a rotation keeps both, a shift and a scale the angles."""
    turn, _ = torch.linalg.qr(states(6, 6, seed=3))
    own, mask = states(1, 8, 6), torch.ones(1, 8)
    assert word_pair_loss(own, 2 * own @ turn, mask).item() == pytest.approx(0, abs=1e-6)
    assert word_angle_loss(own, 3 * own @ turn + 50, mask, 4).item() == pytest.approx(0, abs=1e-6)
    assert word_pair_loss(own, own + 1, mask).item() > 1e-3


@pytest.mark.parametrize("family", ["bert", "albert", "mpnet"])
def test_widths_heads_and_depths_may_differ(family):
    student, teacher = config(2, 12, 3), config(3, 16, 4, family)
    objective = ContextualRelations().objective(student, teacher)
    assert objective.layer_mapping == [2, 3]
    assert objective.data == {QUESTIONS, CORPUS}
    student, teacher = model(student), model(teacher, seed=1)
    losses = run(objective, student, teacher, batch())
    assert set(losses) == {"word_pair", "word_angle", "layer_pair", "layer_angle"}
    assert all((loss > 0).all() for loss in losses.values())
    sum(loss.mean() for loss in losses.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert any("word_embeddings" in name for name in trained)
    assert not any("qa_outputs" in name for name in trained)


def test_embedding_and_mapped_layers_are_summed():
    """Layer 1 has no teacher layer: its state takes part in nothing."""
    own = tuple(states(1, 5, 4, seed=seed) for seed in range(3))
    theirs = tuple(states(1, 5, 6, seed=seed) for seed in range(10, 14))
    options = NONE | {"word_pair_loss_weight": 2}
    objective = ContextualRelations([None, 2], **options, n_neighbours=10).objective(config(2, 4), config(3, 6))
    assert objective.weights == {"word_pair": 2.0}
    inputs = {"attention_mask": torch.ones(1, 5), "weight": torch.ones(1)}
    value = objective(ModelOutputs(hidden_states=own), ModelOutputs(hidden_states=theirs), inputs)["word_pair"].values
    expected = pair_divergence(own[0][0], theirs[0][0]) + pair_divergence(own[2][0], theirs[2][0])
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_zero_for_a_student_that_is_its_teacher():
    same = model(config(3, 12, 4))
    losses = run(ContextualRelations().objective(same.config, same.config), same, same, batch())
    torch.testing.assert_close(losses, dict.fromkeys(losses, torch.zeros(2)))


def test_a_window_does_not_depend_on_padding_or_neighbours():
    student, teacher = model(config(2, 12, 2)), model(config(3, 24, 4), seed=1)
    objective = ContextualRelations(n_neighbours=3).objective(student.config, teacher.config)
    inputs = batch()
    alone = {name: tensor[1:, :4] if tensor.dim() == 2 else tensor[1:] for name, tensor in inputs.items()}
    padded = {name: pad(tensor, (0, 5)) if tensor.dim() == 2 else tensor for name, tensor in alone.items()}
    expected = run(objective, student, teacher, alone)
    for other in (inputs, padded):
        losses = run(objective, student, teacher, other)
        torch.testing.assert_close({name: loss[-1:] for name, loss in losses.items()}, expected)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_windows_and_equal_states_have_finite_gradients(length):
    own = states(1, 3, 4).requires_grad_()
    mask = torch.tensor([[1] * length + [0] * (3 - length)])
    repeated = own[:, :1].expand(1, 3, 4)
    for student in (own, repeated):
        loss = word_pair_loss(student, states(1, 3, 5, seed=1), mask) + word_angle_loss(
            student, states(1, 3, 5, seed=1), mask, 2
        )
        assert length == 3 or loss.item() == pytest.approx(0, abs=1e-6)
        (gradient,) = torch.autograd.grad(loss.sum(), own)
        assert gradient.isfinite().all()
        assert (gradient[:, length:] == 0).all()


def test_equal_words_of_any_size_have_no_direction():
    """Their difference is rounding, whose angles would be noise of any size."""
    own, target = 100 * states(2, 60, 256), states(2, 60, 64, seed=1)
    own[:, 1::2] = own[:, :1] * (1 + 1e-7 * states(2, 30, 256, seed=2))  # every second word repeats the first one
    layers = own.unflatten(1, (15, 4))
    for loss, student, teacher in (
        (lambda s, t, mask: word_angle_loss(s, t, mask, 5), own, target),
        (layer_angle_loss, layers, target.unflatten(1, (15, 4))),
    ):
        inputs = student.clone().requires_grad_()
        value = loss(inputs, teacher, torch.ones(student.shape[:2]))
        value.sum().backward()
        assert (value <= 4).all()
        assert inputs.grad.abs().max() < 1e-3  # a direction changes by the inverse of a distance, here some 1e-3


def test_under_autocast_relations_are_computed_in_float32():
    own, target, mask = states(1, 6, 8), states(1, 6, 8, seed=1), torch.ones(1, 6)
    expected = word_pair_loss(own, target, mask), word_angle_loss(own, target, mask, 2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close((word_pair_loss(own, target, mask), word_angle_loss(own, target, mask, 2)), expected)


def test_it_adds_up_with_answers():
    method = Linear(1.0, 0.0) * ContextualRelations() + PredictionLayer(temperature=2.0)
    objective = method.objective(config(2, 12), config(3, 24))
    assert objective.teacher_request.hidden_states
    assert objective.teacher_request.logits


def test_errors_name_the_remedy():
    with pytest.raises(DistilError, match=r"nothing to learn: one of word_pair_loss_weight, .* greater than 0"):
        ContextualRelations(**NONE)
    with pytest.raises(DistilError, match="n_neighbours must be a whole number of at least 1"):
        ContextualRelations(n_neighbours=0)
    with pytest.raises(DistilError, match=r"word_angle_loss_weight=0 .* so n_neighbours=4 would have no effect"):
        ContextualRelations(word_angle_loss_weight=0, n_neighbours=4)
    with pytest.raises(DistilError, match="teacher"):
        ContextualRelations().objective(BertConfig(), None)
    one_layer = config(1, 12)
    with pytest.raises(DistilError, match=r"only one layer .* set layer_pair_loss_weight=0 and layer_angle_loss_w"):
        ContextualRelations().objective(one_layer, config(3, 24))
    recurrent = BiLstmConfig(vocab_size=40, num_hidden_layers=2, embedding_size=6, units=4)
    with pytest.raises(DistilError, match=r"in a .* the first layer is given 6 and returns 8; set layer_pair_loss"):
        ContextualRelations().objective(recurrent, config(3, 24))
    words = ContextualRelations(layer_pair_loss_weight=0, layer_angle_loss_weight=0)
    for student in (one_layer, recurrent):
        assert set(words.objective(student, config(3, 24)).weights) == {"word_pair", "word_angle"}
