"""Weights that change while a run lasts: in sums of methods and of objectives."""

import pytest
import torch

from haystack_distill.errors import DistilError
from haystack_distill.objectives import Labels, Linear, ModelOutputs, PredictionLayer
from haystack_distill.objectives.schedule import weight_at
from tests.objectives.test_objective import BATCH, CONFIG, Constant


def test_a_weight_runs_from_its_start_to_its_end():
    weight = Linear(0.8, 0.2)
    assert [weight_at(weight, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.8, 0.5, 0.2])
    assert weight_at(weight, 1.0) == 0.2
    assert weight_at(0.3, 0.9) == 0.3
    assert 0.5 * weight == weight * 0.5 == Linear(0.4, 0.1)


def test_it_scales_the_configured_weights_of_its_part():
    total = Linear(1.0, 0.5) * Constant(a=1.0, b=2.0) + 0.5 * (Linear(0.0, 3.0) * Constant(c=4.0))
    assert total.weights == {"a": 2.0, "b": 2.0, "c": 3.0}  # before the first step, the largest
    found = []
    for progress in (0.0, 0.5, 1.0):
        total.begin_step(progress)
        terms, masks = total(ModelOutputs(), None, BATCH), total.masks(BATCH)
        assert terms.keys() == masks.keys() == total.weights.keys()
        found.append(total.weights)
    assert found[0] == {"a": 2.0, "b": 2.0}  # what has no weight is left out
    assert found[1] == {"a": 1.5, "b": 1.5, "c": 1.5}
    assert found[2] == {"a": 1.0, "b": 1.0, "c": 3.0}


def test_a_constant_weight_of_0_is_computed_and_logged():
    total = 0 * Constant(a=1.0) + Constant(b=1.0)
    total.begin_step(0.5)
    assert total.weights == {"a": 0.0, "b": 2.0}
    assert total(ModelOutputs(), None, BATCH).keys() == {"a", "b"}


def test_parts_within_parts_are_given_the_progress():
    inner = Linear(1.0, 0.0) * Constant(a=1.0) + Constant(a=2.0)
    outer = type(inner)([(Linear(2.0, 1.0), inner)])
    outer.begin_step(0.5)
    assert outer.weights == pytest.approx({"a": 1.5, "a_2": 3.0})
    outer.begin_step(1.0)
    assert outer.weights == {"a_2": 2.0}
    assert outer(ModelOutputs(), None, BATCH)["a_2"].values.tolist() == [2.0, 2.0, 2.0]


def test_a_part_that_has_no_weight_gets_no_gradient():
    narrow = torch.nn.Linear(2, 2)

    class Projected(Constant):
        def __init__(self):
            super().__init__(last=1.0)
            self.projection = narrow

        def forward(self, student, teacher, batch):
            terms = super().forward(student, teacher, batch)
            value = self.projection(torch.full((3, 2), float("inf"))).sum(dim=1)  # its loss may be no number
            return {name: term._replace(values=value) for name, term in terms.items()}

    total = Linear(1.0, 0.0) * Projected() + Constant(b=1.0)
    total.begin_step(1.0)
    terms = total(ModelOutputs(), None, BATCH)
    assert terms.keys() == {"b"}


def test_methods_have_such_weights_too():
    method = Linear(1.0, 0.0) * PredictionLayer() + 0.5 * (Linear(0.0, 1.0) * Labels())
    assert [weight for weight, _ in method.parts] == [Linear(1.0, 0.0), Linear(0.0, 0.5)]
    objective = method.objective(CONFIG, CONFIG)
    objective.begin_step(0.5)
    assert objective.weights == {"distillation": 0.25, "labels": 0.25, "labels_2": 0.25}


def test_bad_weights():
    for start, end in ((-1.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(DistilError, match=r"^(start|end) must be a number of 0 or more"):
            Linear(start, end)
    with pytest.raises(DistilError, match="does not change; give one number"):
        Linear(1.0, 1.0)
    with pytest.raises(DistilError, match="cannot scale another one"):
        Linear(1.0, 0.0) * (Linear(1.0, 0.0) * Labels())
    with pytest.raises(TypeError):
        Linear(1.0, 0.0) * "2"


def test_what_a_run_learns_from_does_not_depend_on_the_step_that_an_earlier_run_left() -> None:
    method = Linear(1, 0) * PredictionLayer(distillation_loss_weight=1.0) + Linear(0, 1) * Labels()
    objective = method.objective(None, None)
    largest = objective.largest_weights()
    assert largest == {"distillation": 1.0, "labels": 0.0, "labels_2": 1.0}
    for progress in (0.0, 1.0):
        objective.begin_step(progress)
        assert objective.largest_weights() == largest
