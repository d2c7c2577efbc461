"""PredictionLayer: the parts, their weights, the kinds of distillation loss, the errors."""

import pytest
import torch
import torch.nn.functional as F

from haystack_distill.errors import DistilError
from haystack_distill.objectives import Labels, ModelOutputs, OutputRequest, PredictionLayer
from haystack_distill.objectives.losses import (
    correlation_loss,
    jensen_shannon_loss,
    kl_div_loss,
    mse_logits_loss,
    window_temperatures,
)

INF = float("inf")


def logits(seed, requires_grad=False):
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_(requires_grad)


def student():
    return ModelOutputs(logits(1, True), logits(2, True))


def batch():
    teacher_start, teacher_end = logits(3), logits(4)
    context = torch.tensor([[1, 0, 1, 1, 1, 0], [1, 0, 0, 1, 0, 0], [1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    teacher_start[~context] = -INF
    teacher_end[~context] = -INF
    teacher_start[2, 3] = -INF  # a context token the teacher's tokens do not cover
    return {
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1] * 6]),
        "context_mask": context,
        "start_positions": torch.tensor([2, 3, 0]),
        "end_positions": torch.tensor([3, 3, 0]),
        "labelled": torch.tensor([True, True, False]),
        "weight": torch.ones(3),
        "teacher_start_logits": teacher_start,
        "teacher_end_logits": teacher_end,
    }


def terms(objective, outputs, data):
    """The objective's values by name, with the teacher's logits as its outputs."""
    teacher = ModelOutputs(data["teacher_start_logits"], data["teacher_end_logits"])
    return {name: term.values for name, term in objective(outputs, teacher, data).items()}


def total(objective, losses):
    return sum(objective.weights[name] * loss for name, loss in losses.items())


def test_parts_are_the_losses_unweighted():
    outputs, data = student(), batch()
    losses = terms(PredictionLayer(temperature=2.0, distillation_loss_weight=0.3).objective(), outputs, data)
    masks = data["attention_mask"].bool(), data["context_mask"]
    start = kl_div_loss(outputs.start_logits, data["teacher_start_logits"], *masks, 2.0)
    end = kl_div_loss(outputs.end_logits, data["teacher_end_logits"], *masks, 2.0)
    torch.testing.assert_close(losses["distillation"], (start + end) / 2)
    torch.testing.assert_close(losses["labels"], Labels().objective(None)(outputs, None, data)["labels"].values)
    assert set(losses) == {"distillation", "labels"}


def test_mse():
    outputs, data = student(), batch()
    objective = PredictionLayer(distillation_loss="mse", distillation_loss_weight=0.25).objective()
    start = mse_logits_loss(outputs.start_logits, data["teacher_start_logits"], data["context_mask"])
    end = mse_logits_loss(outputs.end_logits, data["teacher_end_logits"], data["context_mask"])
    torch.testing.assert_close(terms(objective, outputs, data)["distillation"], (start + end) / 2)
    assert objective.weights == {"distillation": 0.25, "labels": 0.75}


@pytest.mark.parametrize(("name", "loss"), [("jensen_shannon", jensen_shannon_loss), ("correlation", correlation_loss)])
def test_other_losses_of_probabilities(name, loss):
    outputs, data = student(), batch()
    objective = PredictionLayer(3.0, 1.0, distillation_loss=name, final_temperature=1.0).objective()
    for progress, temperature in ((0.0, 3.0), (1.0, 1.0)):
        objective.begin_step(progress)
        start, end = (
            loss(own, data[f"teacher_{which}"], data["attention_mask"], data["context_mask"], temperature)
            for own, which in ((outputs.start_logits, "start_logits"), (outputs.end_logits, "end_logits"))
        )
        torch.testing.assert_close(terms(objective, outputs, data)["distillation"], (start + end) / 2)
        assert objective.weights["distillation"] == (temperature**2 if name == "jensen_shannon" else 1.0)


@pytest.mark.parametrize("loss", ["kl_div", "jensen_shannon"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_temperature_squared_is_in_the_weight_of_divergences(temperature, loss):
    weights = PredictionLayer(temperature, 0.25, distillation_loss=loss).objective().weights
    assert weights == {"distillation": 0.25 * temperature**2, "labels": 0.75}


def test_temperature_squared_keeps_the_gradient_in_size():
    # At a high temperature T^2 KL tends to half the variance of the logits' difference: its gradient stops changing.
    def gradient(temperature):
        outputs, objective = student(), PredictionLayer(temperature, distillation_loss_weight=1.0).objective()
        data = batch()
        data["context_mask"] = data["attention_mask"].bool()
        data["teacher_start_logits"], data["teacher_end_logits"] = logits(3), logits(4)
        total(objective, terms(objective, outputs, data)).sum().backward()
        return outputs.start_logits.grad

    torch.testing.assert_close(gradient(50.0), gradient(100.0), atol=5e-3, rtol=0.02)


def test_an_unlabelled_window_learns_from_the_teacher_alone():
    objective, outputs, data = PredictionLayer(distillation_loss_weight=0.3).objective(), student(), batch()
    losses = terms(objective, outputs, data)
    assert losses["labels"][2] == 0
    torch.testing.assert_close(total(objective, losses)[2], 0.3 * losses["distillation"][2])


def test_the_temperature_runs_to_its_last_value():
    objective = PredictionLayer(4.0, 0.25, final_temperature=1.0).objective()
    found = []
    for progress in (0.0, 0.5, 1.0):
        objective.begin_step(progress)
        found.append((objective.temperature, objective.weights["distillation"]))
    assert found == [(4.0, 0.25 * 16), (2.5, 0.25 * 6.25), (1.0, 0.25)]
    outputs, data = student(), batch()
    same = terms(PredictionLayer(1.0, 0.25).objective(), outputs, data)
    assert torch.equal(terms(objective, outputs, data)["distillation"], same["distillation"])


def test_the_temperature_of_a_window_by_hand():
    own = torch.tensor([[1.0, 0.0, -1.0, 9.0, 1.0], [1.0, 0.0, -1.0, 9.0, 1.0], [-1.0, 0.0, 1.0, 9.0, 1.0]])
    teacher = torch.tensor([[2.0, 0.0, -2.0, -INF, 5.0], [1.0, -1.0, 0.0, -INF, 5.0], [1.0, 0.0, -1.0, -INF, 5.0]])
    mask = torch.tensor([True, True, True, True, False]).expand(3, 5)  # the fourth has no score, the fifth no place
    found = window_temperatures(own, teacher, mask, 5.0, 2.0, 2.0)
    assert found.tolist() == pytest.approx([5.0, 5.0 - 2.0 * 0.5**2, 3.0])  # cosines 1, 1/2 and -1, which counts as 0
    # TextBrewer's formula is that of the temperature T + beta * mean weight of the batch, here with means of 0.
    weight = (1 - F.cosine_similarity(own[:2, :3], teacher[:2, :3])) ** 2
    theirs = 4.0 + (weight.mean() - weight) * 2.0
    ours = window_temperatures(own[:2], teacher[:2], mask[:2], 4.0 + 2.0 * weight.mean().item(), 2.0, 2.0)
    torch.testing.assert_close(ours, theirs)


def test_the_temperature_of_a_window_does_not_depend_on_a_number_added_to_all_logits():
    own, teacher, mask = logits(1), logits(3), batch()["context_mask"]
    expected = window_temperatures(own, teacher, mask, 4.0, 3.0, 1.0)
    assert expected.unique().numel() == 3
    torch.testing.assert_close(window_temperatures(own + 5, teacher, mask, 4.0, 3.0, 1.0), expected)
    torch.testing.assert_close(window_temperatures(own, teacher.log_softmax(1) - 20, mask, 4.0, 3.0, 1.0), expected)
    same = window_temperatures(teacher + 7, teacher, mask, 4.0, 3.0, 1.0)
    torch.testing.assert_close(same, torch.full((3,), 4.0), atol=1e-4, rtol=0)


def test_windows_of_their_own_temperature():
    method = PredictionLayer(3.0, 0.4, flsw_beta=2.0, flsw_gamma=0.5)
    objective, outputs, data = method.objective(), student(), batch()
    assert objective.weights == {"distillation": 0.4, "labels": 0.6}
    losses = terms(objective, outputs, data)["distillation"]
    masks = data["attention_mask"].bool(), data["context_mask"]
    expected = torch.zeros(3)
    for own, name in ((outputs.start_logits, "teacher_start_logits"), (outputs.end_logits, "teacher_end_logits")):
        taus = window_temperatures(own, data[name], data["context_mask"], 3.0, 2.0, 0.5)
        assert not taus.requires_grad
        for window, tau in enumerate(taus.tolist()):
            alone = kl_div_loss(own, data[name], *masks, tau)[window]
            expected[window] += tau**2 * alone.item() / 2
    torch.testing.assert_close(losses.detach(), expected)
    losses.sum().backward()
    assert outputs.start_logits.grad.isfinite().all()
    assert outputs.start_logits.grad[1, 4:].eq(0).all()
    alike = ModelOutputs(data["teacher_start_logits"].nan_to_num(neginf=-1e9), data["teacher_end_logits"])
    assert terms(objective, alike, data)["distillation"].abs().max() < 1e-5


@pytest.mark.parametrize("loss", ["kl_div", "mse"])
def test_gradients_are_finite_and_leave_padding_alone(loss):
    objective, outputs = PredictionLayer(distillation_loss=loss).objective(), student()
    total(objective, terms(objective, outputs, batch())).mean().backward()
    for tensor in (outputs.start_logits, outputs.end_logits):
        assert tensor.grad.isfinite().all()
        assert tensor.grad[1, 4:].eq(0).all()
        assert tensor.grad[1, :4].abs().max() > 0


def test_callable_gets_finite_logits_and_is_not_scaled():
    calls = []

    def loss(student_logits, teacher_logits, mask, temperature):
        calls.append((student_logits, teacher_logits, mask, temperature))
        # The plain PyTorch way works: what must not count is at -1e9.
        log_student = F.log_softmax(student_logits / temperature, dim=1)
        return F.kl_div(log_student, F.softmax(teacher_logits / temperature, dim=1), reduction="none").sum(dim=1)

    outputs, data = student(), batch()
    objective = PredictionLayer(2.0, 0.5, loss).objective()
    losses = terms(objective, outputs, data)
    builtin = terms(PredictionLayer(2.0, 0.5).objective(), outputs, data)
    torch.testing.assert_close(losses["distillation"], builtin["distillation"])
    assert objective.weights == {"distillation": 0.5, "labels": 0.5}
    assert len(calls) == 2
    for student_logits, teacher_logits, _, temperature in calls:
        assert student_logits.isfinite().all()
        assert teacher_logits.isfinite().all()
        assert temperature == 2.0
    start_mask, end_mask = calls[0][2], calls[1][2]
    assert not start_mask[2, 3]
    assert end_mask[2, 3]
    assert torch.equal(end_mask, data["context_mask"])
    losses["distillation"].sum().backward()
    assert outputs.start_logits.grad.isfinite().all()
    assert outputs.start_logits.grad[1, 4:].eq(0).all()


@pytest.mark.parametrize("reduce", [lambda x: x, lambda x: x.mean(), lambda x: 1.0])
def test_callable_with_the_wrong_shape(reduce):
    objective = PredictionLayer(distillation_loss=lambda s, t, mask, temperature: reduce((s - t) * mask)).objective()
    with pytest.raises(DistilError, match=r"one value per window, shape \(3,\)"):
        terms(objective, student(), batch())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": INF}, "temperature"),
        *(({"temperature": value}, "temperature must be a number above 0, not") for value in ("2", None, True)),
        *(
            ({"distillation_loss_weight": value}, "distillation_loss_weight must be a number from 0")
            for value in ("1", None, True)
        ),
        ({"distillation_loss_weight": -0.1}, "distillation_loss_weight"),
        ({"distillation_loss_weight": 1.1}, "distillation_loss_weight"),
        ({"distillation_loss_weight": float("nan")}, "distillation_loss_weight"),
        ({"distillation_loss": "kl"}, "'kl'"),
        ({"distillation_loss": None}, "None"),
        ({"distillation_loss": "mse", "temperature": 2.0}, "no effect"),
        ({"distillation_loss": "mse", "final_temperature": 2.0}, "final_temperature=2.0 would have no effect"),
        ({"distillation_loss_weight": 0, "flsw_beta": 0.5}, "flsw_beta=0.5 would have no effect"),
        ({"distillation_loss": print, "flsw_beta": 0.5}, "flsw_beta has an effect with"),
        ({"distillation_loss": "jensen_shannon", "flsw_beta": 0.5}, "flsw_beta has an effect with"),
        ({"distillation_loss_weight": 0, "distillation_loss": "mse"}, "distillation_loss='mse' would have no effect"),
        ({"flsw_gamma": 2.0}, "flsw_gamma=2.0 has no effect without flsw_beta"),
        ({"temperature": 2.0, "final_temperature": 2.0}, "is the temperature of the first step too"),
        ({"temperature": 4.0, "final_temperature": 1.5, "flsw_beta": 1.5}, "could lower a temperature of 1.5 to 0"),
        ({"final_temperature": 0.0}, "final_temperature must be a number above 0, or None"),
        ({"flsw_beta": -1.0}, "flsw_beta must be"),
        ({"flsw_gamma": 0}, "flsw_gamma must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(DistilError, match=message):
        PredictionLayer(**arguments)


def test_what_it_needs():
    objective = PredictionLayer().objective()
    assert objective.teacher_request == objective.student_request == OutputRequest(logits=True)


def test_a_teacher_without_logits_is_refused():
    with pytest.raises(DistilError, match="needs the teacher's start and end logits"):
        PredictionLayer().objective()(student(), ModelOutputs(), batch())


def test_unlabelled_windows_have_no_labels_term():
    objective, data = PredictionLayer().objective(), batch()
    teacher = ModelOutputs(data["teacher_start_logits"], data["teacher_end_logits"])
    found = objective(student(), teacher, data)
    assert found["distillation"].mask.tolist() == [True, True, True]
    assert found["labels"].mask.tolist() == [True, True, False]
    for name, mask in objective.masks(data).items():
        assert torch.equal(mask, found[name].mask)
