"""The choice of a teacher by the outputs that are requested."""

from collections.abc import Callable
from pathlib import Path

import pytest

from haystack_distill import DistilError, Reader, ReaderTrainer
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.objectives import PredictionLayer
from haystack_distill.teachers import CachedTeacher, EnsembleTeacher, LiveTeacher, Teacher
from haystack_distill.teachers.choice import readers_of, teacher_for

MakeReader = Callable[..., Reader]
LOGITS = OutputRequest(logits=True)


def test_the_cheapest_teacher_is_chosen(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    assert isinstance(teacher_for(reader, LOGITS), CachedTeacher)
    for request in (OutputRequest(hidden_states=True), LOGITS | OutputRequest(attention_scores=(1,))):
        assert isinstance(teacher_for(reader, request), LiveTeacher)


def test_several_readers_are_an_ensemble(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    assert isinstance(teacher_for([reader], LOGITS), CachedTeacher)
    ensemble = teacher_for([reader, LiveTeacher(reader)], LOGITS)
    assert isinstance(ensemble, EnsembleTeacher)
    assert [type(teacher) for teacher in ensemble.teachers] == [CachedTeacher, LiveTeacher]


def test_a_teacher_is_returned_as_it_is(tiny_reader: MakeReader) -> None:
    teacher = LiveTeacher(tiny_reader())
    assert teacher_for(teacher, LOGITS) is teacher


@pytest.mark.parametrize("source", ["embedded", 3, None])
def test_anything_else_is_refused(source: object) -> None:
    with pytest.raises(
        DistilError, match=f"must be a Reader, a list of readers or a Teacher, not {type(source).__name__}"
    ):
        teacher_for(source, LOGITS)  # type: ignore[arg-type]


class Own(Teacher):
    """A teacher of the user's own, with a model."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def fingerprint(self):
        return {"own": 1}

    def outputs(self, batch, request):
        raise NotImplementedError

    def models(self):
        return [self.reader]


def test_a_teacher_of_ones_own_names_its_models(tiny_reader: MakeReader, tmp_path: Path) -> None:
    reader = tiny_reader()
    own = Own(reader)
    assert readers_of(own) == readers_of(EnsembleTeacher([own, LiveTeacher(reader)]))[:1] == [reader]
    with pytest.raises(DistilError, match="teacher and student are the same model"):
        ReaderTrainer(reader).distil(own, tmp_path / "train.json", PredictionLayer())


def test_the_readers_of_a_teacher(tiny_reader: MakeReader) -> None:
    one, other = tiny_reader(seed=1), tiny_reader(seed=2)
    assert readers_of(one) == [one]
    assert readers_of([LiveTeacher(one), other]) == [one, other]
    assert readers_of(EnsembleTeacher([CachedTeacher(one), LiveTeacher(other)])) == [one, other]
