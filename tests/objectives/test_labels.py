"""Labels: the mean of start and end cross entropy, nothing for unlabelled windows."""

import math

import torch

from haystack_distill.objectives import Labels, ModelOutputs, OutputRequest


def batch(labelled=(True, True), start=(0, 1), end=(1, 1)):
    return {
        "weight": torch.ones(2),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "start_positions": torch.tensor(start),
        "end_positions": torch.tensor(end),
        "labelled": torch.tensor(labelled),
    }


def student():
    start = torch.log(torch.tensor([[1.0, 3.0, 99.0], [1.0, 2.0, 1.0]])).requires_grad_()
    end = torch.log(torch.tensor([[1.0, 1.0, 99.0], [1.0, 1.0, 2.0]])).requires_grad_()
    return ModelOutputs(start, end)


def terms(outputs, data):
    """The objective's values by name."""
    found = Labels().objective(None)(outputs, None, data)
    return {name: term.values for name, term in found.items()}


def test_by_hand():
    losses = terms(student(), batch())
    expected = torch.tensor([(math.log(4) + math.log(2)) / 2, (math.log(2) + math.log(4)) / 2])
    torch.testing.assert_close(losses, {"labels": expected})


def test_start_and_end_both_count():
    losses = terms(student(), batch(start=(1, 1), end=(0, 2)))["labels"]
    expected = torch.tensor([(math.log(4 / 3) + math.log(2)) / 2, (math.log(2) + math.log(2)) / 2])
    torch.testing.assert_close(losses, expected)


def test_unlabelled_windows_have_no_loss_and_no_gradient_wherever_their_positions_point():
    outputs = student()
    losses = terms(outputs, batch(labelled=(False, True), start=(-100, 1), end=(99, 1)))["labels"]
    losses.sum().backward()
    assert losses[0] == 0
    assert losses[1] > 0
    for logits in (outputs.start_logits, outputs.end_logits):
        assert logits.grad[0].eq(0).all()
        assert logits.grad[1].abs().max() > 0


def test_unlabelled_windows_do_not_have_the_term():
    objective, data = Labels().objective(None), batch(labelled=(False, True))
    assert objective(student(), None, data)["labels"].mask.tolist() == [False, True]
    assert objective.masks(data)["labels"].tolist() == [False, True]


def test_what_it_needs():
    objective = Labels().objective(None)
    assert objective.weights == {"labels": 1.0}
    assert not objective.teacher_request
    assert objective.student_request == OutputRequest(logits=True)
    assert not list(objective.parameters())
