"""Layers of an architecture: where their weights are, and their entries in the configuration."""

from collections.abc import Callable

import pytest

from haystack_distill import Reader
from haystack_distill.students.configured import from_config
from haystack_distill.students.cut import from_teacher
from haystack_distill.students.layers import layer_index, layer_list_name
from tests.students.conftest import LAYERS


def test_what_a_configuration_says_per_layer_goes_with_the_layers(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher("longformer")
    student = from_teacher(teacher, 3, [1, 3, 6])
    assert student.model.config.attention_window == [2, 6, 12]
    small = from_config(teacher, num_hidden_layers=2)
    assert small.model.config.attention_window == [2, 4]
    assert from_config(teacher, num_hidden_layers=2, attention_window=[8, 8]).model.config.attention_window == [8, 8]
    assert teacher.model.config.attention_window == [2, 4, 6, 8, 10, 12]


def test_a_student_takes_over_the_teachers_settings(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher()
    for student in (from_teacher(teacher, 2), from_config(teacher, num_hidden_layers=2)):
        for name in (
            "window_settings",
            "max_answer_length",
            "no_answer_threshold",
            "batch_size",
            "precision",
            "device",
        ):
            assert getattr(student, name) == getattr(teacher, name), name
        assert not student.model.training


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_belong_to_layers_by_their_names(make_teacher: Callable[..., Reader], kind: str) -> None:
    model = make_teacher(kind).model
    assert layer_list_name(model) == LAYERS[kind]
    found = {layer_index(model, name) for name in model.state_dict()}
    assert found == {None, *range(6)}
    assert layer_index(model, f"{LAYERS[kind]}.5.some.weight") == 5
    assert layer_index(model, "qa_outputs.weight") is None


def test_shared_layers_have_no_list(make_teacher: Callable[..., Reader]) -> None:
    model = make_teacher("albert").model
    assert layer_list_name(model) is None
    assert {layer_index(model, name) for name in model.state_dict()} == {None}
