"""Method and MethodSum: how methods add up."""

import pytest
from transformers import BertConfig

from haystack_distill.errors import DistilError
from haystack_distill.objectives import IntermediateLayers, Labels, PredictionLayer
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
