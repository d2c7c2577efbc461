"""Which weights learn at which rate, and by which optimiser."""

from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertForQuestionAnswering

from haystack_distill import DistilError, TrainingSettings, students
from haystack_distill.objectives import IntermediateLayers, Labels, SelfDistillation, TaskFilters
from haystack_distill.training.optimisation import cyclic_factor, is_plain, learning_rates, make_optimizer
from tests.training.helpers import MakeReader


def rates_by_name(settings: TrainingSettings, reader: Any, teacher: Any = None) -> dict[str, float]:
    config = reader.model.config
    method = Labels() if teacher is None else Labels() + IntermediateLayers()
    objective = method.objective(config, teacher and teacher.model.config)
    names = {
        id(parameter): name for name, parameter in (*reader.model.named_parameters(), *objective.named_parameters())
    }
    return {names[id(one)]: rate for one, rate in learning_rates(settings, reader.model, objective).items()}


def test_rates_of_layers_embeddings_head_and_projections(tiny_reader: MakeReader) -> None:
    student, teacher = tiny_reader(hidden_size=16), tiny_reader()
    settings = TrainingSettings(
        learning_rate=1.0, layer_decay=0.5, head_learning_rate=3.0, projection_learning_rate=2.0
    )
    assert not is_plain(settings)
    rates = rates_by_name(settings, student, teacher)
    for name, rate in rates.items():
        if "embeddings" in name:
            expected = 0.5**4
        elif ".layer." in name:
            expected = 0.5 ** (3 - int(name.split(".layer.")[1].split(".")[0]))
        else:
            expected = 3.0 if name.startswith("qa_outputs") else 2.0
        assert rate == expected, name
    assert set(rates.values()) == {0.0625, 0.125, 0.25, 0.5, 1.0, 3.0, 2.0}
    own = rates_by_name(TrainingSettings(learning_rate=1.0, embedding_learning_rate=0.1), student)
    assert {name for name, rate in own.items() if rate == 0.1} == {name for name in own if "embeddings" in name}


def test_one_rate_is_trainers_own_optimiser(tiny_reader: MakeReader) -> None:
    assert is_plain(TrainingSettings(learning_rate_schedule="cosine", best_by="loss"))
    assert set(rates_by_name(TrainingSettings(learning_rate=0.5), tiny_reader()).values()) == {0.5}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"projection_learning_rate": 1.0}, "projection_learning_rate has no effect: no projection of a method"),
        ({"embedding_learning_rate": 1.0}, "embedding_learning_rate has no effect: no embedding is trained"),
    ],
)
def test_a_rate_without_effect_is_refused(changed: dict[str, Any], message: str, tiny_reader: MakeReader) -> None:
    model = tiny_reader().model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    with pytest.raises(DistilError, match=message):
        make_optimizer(TrainingSettings(**changed), model, Labels().objective(model.config), [], lambda _: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embedding_learning_rate": 1.0}, "no embedding is trained in this run"),
        ({"head_learning_rate": 1.0}, "no head is trained in this run"),
        ({"layer_decay": 0.9}, "layer_decay has no effect: no layer of the student is trained"),
    ],
)
def test_a_rate_of_the_student_where_it_does_not_learn(
    changed: dict[str, Any], message: str, tiny_reader: MakeReader
) -> None:
    model = tiny_reader().model
    objective = TaskFilters().objective(model.config, model.config)
    with pytest.raises(DistilError, match=message):
        learning_rates(TrainingSettings(**changed), model, objective)


def test_branches_alone_are_no_layers(tiny_reader: MakeReader) -> None:
    model = students.early_exit(tiny_reader(), branch_size=4).model
    for changed in ({"embedding_learning_rate": 1.0}, {"layer_decay": 0.5}):
        settings = TrainingSettings(**changed)  # type: ignore[arg-type]
        with pytest.raises(DistilError, match="has no effect"):
            learning_rates(settings, model, SelfDistillation().objective(model.config))
        learning_rates(settings, model, SelfDistillation(backbone=True).objective(model.config))
    learning_rates(TrainingSettings(head_learning_rate=1.0), model, SelfDistillation().objective(model.config))


def test_rates_that_do_not_fit_are_refused(tiny_reader: MakeReader) -> None:
    student = tiny_reader()
    layers = IntermediateLayers().objective(student.model.config, student.model.config)
    with pytest.raises(DistilError, match="head_learning_rate has no effect: no head is trained"):
        learning_rates(TrainingSettings(head_learning_rate=1.0), student.model, layers)
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    albert = AlbertForQuestionAnswering(AlbertConfig(vocab_size=20, embedding_size=4, **shape))
    with pytest.raises(DistilError, match="a albert student share their weights, so layer_decay"):
        learning_rates(TrainingSettings(layer_decay=0.9), albert, Labels().objective(albert.config))


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adadelta", torch.optim.Adadelta)])
def test_groups_of_the_optimiser(name: Any, kind: type, tiny_reader: MakeReader) -> None:
    model = tiny_reader().model
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    settings = TrainingSettings(optimizer=name, learning_rate=0.5, embedding_learning_rate=0.1, weight_decay=0.2)
    made = make_optimizer(settings, model, Labels().objective(model.config), decayed, lambda _: None)  # type: ignore[arg-type,return-value]
    assert type(made) is kind
    assert [(group["lr"], group["weight_decay"]) for group in made.param_groups[:2]] == [(0.5, 0.2), (0.5, 0.0)]
    assert sorted((group["lr"], group["weight_decay"]) for group in made.param_groups[2:]) == [(0.1, 0.0), (0.1, 0.2)]
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(model.parameters()))


def test_a_cycle_falls_to_0() -> None:
    factors = [cyclic_factor(step, warmup=2, steps=10, cycles=2) for step in range(12)]
    assert factors == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    uneven = [cyclic_factor(step, warmup=0, steps=5, cycles=2) for step in range(5)]
    assert uneven == pytest.approx([1.0, 0.6, 0.2, 0.8, 0.4])
