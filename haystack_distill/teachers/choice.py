"""The choice of a teacher by the outputs that an objective needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from haystack_distill.errors import DistilError
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.models.reader import Reader
from haystack_distill.teachers.by_data import Sources, TeachersByData
from haystack_distill.teachers.cached import CachedTeacher
from haystack_distill.teachers.ensemble import EnsembleTeacher
from haystack_distill.teachers.live import LiveTeacher
from haystack_distill.teachers.teacher import Teacher

TeacherSource: TypeAlias = Reader | Teacher | Sequence[Reader | Teacher]


def teacher_for(source: TeacherSource | Sources, request: OutputRequest) -> Teacher:
    """The teacher that provides the requested outputs at the lowest cost.

    For logits only, a reader becomes a `CachedTeacher`, which runs once over the data; otherwise a `LiveTeacher`,
    which runs once per batch. Several readers become an `EnsembleTeacher`, and the teachers of several sources of
    data a `TeachersByData`.

    Args:
        source: A reader, several readers, a teacher, which is returned as it is, or `Sources` with teachers.
        request: The outputs that the objective needs.

    Raises:
        DistilError: `source` is none of these, or more than logits is needed of a reader that was loaded with another
            backend than PyTorch.
    """
    if isinstance(source, Teacher):
        return source
    if isinstance(source, Reader):
        return LiveTeacher(source) if request.beyond_logits else CachedTeacher(source)
    if isinstance(source, Sources):
        given = [one.teacher for one in source.sources]
        return TeachersByData([None if teacher is None else teacher_for(teacher, request) for teacher in given])
    if isinstance(source, Sequence) and not isinstance(source, str):
        members = [teacher_for(one, request) for one in source]
        return members[0] if len(members) == 1 else EnsembleTeacher(members)
    raise _wrong_kind(source)


def readers_of(source: TeacherSource | Sources) -> list[Reader | LanguageModel]:
    """The models of a teacher that are in memory; see `Teacher.models`."""
    if isinstance(source, Teacher):
        return source.models()
    if isinstance(source, Sources):
        return [reader for one in source.sources if one.teacher is not None for reader in readers_of(one.teacher)]
    if isinstance(source, Sequence) and not isinstance(source, str):
        return [reader for one in source for reader in readers_of(one)]
    if not isinstance(source, Reader):
        raise _wrong_kind(source)
    return [source]


def _wrong_kind(source: object) -> DistilError:
    return DistilError(f"a teacher must be a Reader, a list of readers or a Teacher, not {type(source).__name__}")
