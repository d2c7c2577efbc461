"""Method and MethodSum: how methods add up."""

import pytest
from transformers import BertConfig

from haystack_distill.errors import DistilError
from haystack_distill.objectives import (
    IntermediateLayers,
    Labels,
    MaskedLanguageModel,
    Patient,
    PredictionLayer,
    TeacherStudent,
    TripleLoss,
)
from haystack_distill.objectives.method import MethodSum, parts_of

CONFIG = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)


def test_methods_add_up_to_the_sum_of_their_objectives():
    method = 0.8 * PredictionLayer(temperature=2.0) + 0.2 * (IntermediateLayers() + Labels())
    assert [(weight, type(part)) for weight, part in parts_of(method)] == [
        (0.8, PredictionLayer),
        (0.2, IntermediateLayers),
        (0.2, Labels),
    ]
    weights = method.objective(CONFIG, CONFIG).weights
    assert weights == pytest.approx(
        {"distillation": 1.6, "labels": 0.4, "embedding": 0.2, "hidden": 0.2, "attention": 0.006, "labels_2": 0.2}
    )
    assert parts_of(Labels()) == ((1.0, Labels()),)


def test_sums_of_methods_are_flat_and_equal_if_their_parts_are():
    method = 0.5 * (Labels() + 2 * PredictionLayer())
    assert parts_of(method) == ((0.5, Labels()), (1.0, PredictionLayer()))
    assert method == 0.5 * Labels() + PredictionLayer()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weights(weight):
    with pytest.raises(DistilError, match="the weight of a method must be a number of 0 or more"):
        weight * Labels()


def test_what_does_not_add_up():
    with pytest.raises(TypeError):
        Labels() + 1
    with pytest.raises(TypeError):
        Labels() * "2"
    with pytest.raises(DistilError, match="at least one"):
        MethodSum(())


SOFTENED = [
    (Patient, {}),
    (TripleLoss, {}),
    (MaskedLanguageModel, {}),
    (TeacherStudent, {}),
    (TeacherStudent, {"temperature_squared": True}),
]


@pytest.mark.parametrize(("kind", "options"), SOFTENED)
def test_a_temperature_runs_to_its_last_value_and_its_square_with_it(kind, options):
    objective = kind(temperature=4.0, final_temperature=1.5, **options).objective(CONFIG, CONFIG)
    for progress, temperature in ((0.0, 4.0), (0.5, 2.75), (1.0, 1.5)):
        objective.begin_step(progress)
        fixed = kind(temperature=temperature, **options).objective(CONFIG, CONFIG)
        assert objective.temperature == fixed.temperature == temperature
        assert objective.weights == fixed.weights
    objective.begin_step(0.0)  # of the progress alone
    assert objective.weights == kind(temperature=4.0, **options).objective(CONFIG, CONFIG).weights


@pytest.mark.parametrize(("kind", "options"), SOFTENED)
def test_a_last_temperature_without_effect(kind, options):
    with pytest.raises(DistilError, match="is the temperature of the first step too; leave it out"):
        kind(temperature=3.0, final_temperature=3.0, **options)
    for wrong in (0, -1.0, "2"):
        with pytest.raises(DistilError, match="final_temperature must be a number above 0, or None"):
            kind(final_temperature=wrong, **options)
    without = {
        Patient: {"distillation_loss_weight": 0},
        TripleLoss: {"soft_target_weight": 0},
        MaskedLanguageModel: {"soft_target_weight": 0},
        TeacherStudent: {"dist_w": 0},
    }
    with pytest.raises(DistilError, match=r"so final_temperature=2\.5 would have no effect"):
        kind(final_temperature=2.5, **without[kind])
    if kind is TeacherStudent:
        with pytest.raises(DistilError, match=r"so final_temperature=2\.5 would have no effect"):
            kind(final_temperature=2.5, loss_function="mse")
