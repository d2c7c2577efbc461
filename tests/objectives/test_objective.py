"""Objective, WeightedSum and LossTerm: how objectives add up."""

import pytest
import torch
from transformers import BertConfig

from haystack_distill.errors import DistilError
from haystack_distill.objectives import (
    IntermediateLayers,
    Labels,
    LossTerm,
    MaskedLanguageModel,
    ModelOutputs,
    Objective,
    OutputRequest,
    PredictionLayer,
    WeightedSum,
)

CONFIG = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
BATCH = {"weight": torch.ones(3), "first": torch.tensor([True, False, True])}


class Constant(Objective):
    """Terms of given values; the term "partly" is there where the batch's "first" is."""

    def __init__(self, **values: float) -> None:
        super().__init__()
        self.values = values
        self.weights = dict.fromkeys(values, 2.0)
        self.student_request = OutputRequest()

    def masks(self, batch):
        masks = super().masks(batch)
        return masks | {"partly": batch["first"]} if "partly" in masks else masks

    def forward(self, student, teacher, batch):
        return {name: LossTerm(torch.full((3,), self.values[name]), mask) for name, mask in self.masks(batch).items()}


def test_a_sum_has_the_terms_of_its_parts_with_weights_multiplied():
    total = 0.5 * Constant(a=1.0) + Constant(b=3.0, partly=4.0) * 2
    assert isinstance(total, WeightedSum)
    assert total.weights == {"a": 1.0, "b": 4.0, "partly": 4.0}
    terms = total(ModelOutputs(), None, BATCH)
    assert {name: term.values[0].item() for name, term in terms.items()} == {"a": 1.0, "b": 3.0, "partly": 4.0}
    assert terms["a"].mask.all()
    for name, mask in total.masks(BATCH).items():
        assert torch.equal(mask, terms[name].mask)
    assert terms["partly"].mask.tolist() == [True, False, True]


def test_sums_are_flat_and_terms_of_one_name_are_told_apart():
    total = Constant(a=1.0) + 0.5 * (Constant(a=2.0) + Constant(a=3.0))
    assert len(total.parts) == 3
    assert total.part_weights == (1.0, 0.5, 0.5)
    assert total.weights == {"a": 2.0, "a_2": 1.0, "a_3": 1.0}
    values = {name: term.values[0].item() for name, term in total(ModelOutputs(), None, BATCH).items()}
    assert values == {"a": 1.0, "a_2": 2.0, "a_3": 3.0}


def test_parameters_of_the_parts_are_the_sums():
    narrow = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    total = IntermediateLayers().objective(narrow, CONFIG) + PredictionLayer().objective()
    assert {name.partition(".")[0] for name, _ in total.named_parameters()} == {"parts"}
    assert len(list(total.parameters())) == 6


def test_requests_of_a_sum_are_those_of_its_parts_together():
    layers, answers = IntermediateLayers().objective(CONFIG, CONFIG), PredictionLayer().objective()
    total = layers + answers
    assert total.student_request == layers.student_request | answers.student_request
    assert total.teacher_request == OutputRequest(logits=True, hidden_states=True, attention_scores=(1, 2))
    assert total.data == {"questions"}


def test_requests():
    assert not OutputRequest()
    assert OutputRequest(logits=True)
    assert not OutputRequest(logits=True).beyond_logits
    assert OutputRequest(attention_scores=(2,)).beyond_logits
    merged = OutputRequest(attention_scores=(3, 1)) | OutputRequest(hidden_states=True, attention_scores=(2, 3))
    assert merged == OutputRequest(hidden_states=True, attention_scores=(1, 2, 3))


def test_questions_and_a_corpus_do_not_add_up():
    with pytest.raises(DistilError, match="some need questions and others a corpus"):
        (PredictionLayer() + MaskedLanguageModel()).objective(CONFIG, CONFIG)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weights(weight):
    with pytest.raises(DistilError, match="the weight of an objective must be a number of 0 or more"):
        weight * Labels().objective(CONFIG)


def test_what_does_not_add_up():
    one = Labels().objective(CONFIG)
    with pytest.raises(TypeError):
        one + 1
    with pytest.raises(TypeError):
        one * "2"
    with pytest.raises(DistilError, match="at least one"):
        WeightedSum([])


def test_names_of_a_part_do_not_collide_with_each_other():
    nested = WeightedSum([(1.0, Constant(a=1.0)), (5.0, Constant(a=2.0))])  # its terms are "a" and "a_2"
    total = WeightedSum([(1.0, Constant(a=3.0)), (1.0, nested)])
    assert total.weights == {"a": 2.0, "a_2": 2.0, "a_2_2": 10.0}
    values = {name: term.values[0].item() for name, term in total(ModelOutputs(), None, BATCH).items()}
    assert values == {"a": 3.0, "a_2": 1.0, "a_2_2": 2.0}
