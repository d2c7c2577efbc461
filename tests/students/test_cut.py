"""Students cut from a teacher have exactly the weights of the layers that they keep."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    BertTokenizerFast,
)

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.students.configured import from_config
from haystack_distill.students.cut import from_teacher
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.transformers_compat import TRANSFORMERS_5
from tests.students.conftest import CONTEXT, LAYERS, QUESTION, config_of


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("layers", "which", "kept"),
    [
        (3, "uniform", [2, 4, 6]),
        (4, "uniform", [2, 3, 5, 6]),
        (1, "uniform", [6]),
        (3, "block_starts", [1, 3, 5]),
        (4, "block_starts", [1, 3, 4, 6]),
        (1, "block_starts", [1]),
        (2, "first", [1, 2]),
        (2, "last", [5, 6]),
        (3, [1, 3, 6], [1, 3, 6]),
    ],
)
def test_a_student_carries_the_layers_that_were_asked_for(
    make_teacher: Callable[..., Reader], kind: str, layers: int, which: str | Sequence[int], kept: list[int]
) -> None:
    teacher = make_teacher(kind)
    student = from_teacher(teacher, layers, which)
    assert student.model.config.num_hidden_layers == layers
    weights = student.model.state_dict()
    wanted = {}
    for name, weight in teacher.model.state_dict().items():
        if not name.startswith(f"{LAYERS[kind]}."):
            wanted[name] = weight
            continue
        number, rest = name.removeprefix(f"{LAYERS[kind]}.").split(".", 1)
        if int(number) + 1 in kept:
            wanted[f"{LAYERS[kind]}.{kept.index(int(number) + 1)}.{rest}"] = weight
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in wanted.items())


def test_an_albert_student_shares_its_layers_as_the_teacher_does(make_teacher: Callable[..., Reader]) -> None:
    teacher = make_teacher("albert")
    student = from_teacher(teacher, 2)
    assert student.model.config.num_hidden_layers == 2
    assert student.n_parameters == teacher.n_parameters
    weights = teacher.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in student.model.state_dict().items())
    assert student.answer(QUESTION, CONTEXT, 3) != teacher.answer(QUESTION, CONTEXT, 3)


def test_an_albert_of_several_groups_cannot_be_cut(tokenizer: BertTokenizerFast) -> None:
    config = config_of("albert", len(tokenizer))
    config.num_hidden_groups = 2
    teacher = Reader(
        AutoModelForQuestionAnswering.from_config(config), tokenizer, window_settings=WindowSettings(48, 16, 16)
    )
    with pytest.raises(DistilError, match="groups"):
        from_teacher(teacher, 2, "last")
    assert from_teacher(teacher, 6).n_parameters == teacher.n_parameters


@pytest.mark.parametrize("kind", [*LAYERS, "albert"])
def test_a_student_with_all_layers_answers_as_the_teacher(make_teacher: Callable[..., Reader], kind: str) -> None:
    teacher = make_teacher(kind)
    before = model_fingerprint(teacher.model)
    student = from_teacher(teacher, 6)
    assert student.answer(QUESTION, CONTEXT, 20) == teacher.answer(QUESTION, CONTEXT, 20)
    for parameter in student.model.parameters():
        torch.nn.init.zeros_(parameter)
    assert model_fingerprint(teacher.model) == before  # nothing is shared
    assert teacher.model.config.num_hidden_layers == 6


@pytest.mark.skipif(not TRANSFORMERS_5, reason="transformers 4 has no question answering head for ModernBERT")
def test_a_modernbert_student(make_teacher: Callable[..., Reader], tmp_path: Path) -> None:
    """Its first layer has no normalisation before the attention, the others have, and each is local or global."""
    teacher = make_teacher("modernbert")
    student = from_teacher(teacher, 3, [2, 4, 6])
    types = teacher.model.config.layer_types
    assert student.model.config.layer_types == [types[1], types[3], types[5]]
    theirs, weights = teacher.model.state_dict(), student.model.state_dict()
    for name, weight in weights.items():
        number = re.match(r"model\.layers\.(\d)\.", name)
        source = name.replace(f"layers.{number[1]}.", f"layers.{2 * int(number[1]) + 1}.") if number else name
        assert torch.equal(weight, theirs[source]), name
    loaded = Reader.load(
        student.save(tmp_path / "student"), window_settings=student.window_settings, device="cpu", precision="fp32"
    )
    assert loaded.answer(QUESTION, CONTEXT, 5) == student.replace(model=student.model).answer(QUESTION, CONTEXT, 5)
    small = from_config(teacher, num_hidden_layers=2)
    assert small.model.config.layer_types == types[:2]
    assert small.answer(QUESTION, CONTEXT)
    assert from_teacher(teacher, 6).answer(QUESTION, CONTEXT, 9) == teacher.answer(QUESTION, CONTEXT, 9)


@pytest.mark.parametrize(
    ("layers", "which", "message"),
    [
        (0, "uniform", "1 to 6 layers, not 0"),
        (7, "uniform", "1 to 6 layers, not 7"),
        ("3", "uniform", "have 1 to 6 layers, not '3'"),
        (True, "uniform", "have 1 to 6 layers, not True"),
        (2.0, "uniform", "have 1 to 6 layers, not 2.0"),
        (2, 5, "which must be 'block_starts', 'uniform', 'first', 'last', 'importance' or a list of layers, not 5"),
        (2, ["1", "2"], "which must be 'block_starts'"),
        (
            2,
            "middle",
            "which must be 'block_starts', 'uniform', 'first', 'last', 'importance' or a list of layers, not 'middle'",
        ),
        (2, [1, 2, 3], "must name 2 different layers"),
        (2, [3, 1], "in ascending order"),
        (2, [3, 3], "different layers"),
        (2, [0, 3], "between 1 and 6"),
        (2, [3, 7], "between 1 and 6"),
    ],
)
def test_cuts_that_do_not_fit(
    make_teacher: Callable[..., Reader], layers: int, which: str | Sequence[int], message: str
) -> None:
    with pytest.raises(DistilError, match=message):
        from_teacher(make_teacher(), layers, which)
