"""Which kind of teacher fits what an objective needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from haystack_distill.errors import DistilError
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.models.reader import Reader
from haystack_distill.teachers.cached import CachedTeacher
from haystack_distill.teachers.ensemble import EnsembleTeacher
from haystack_distill.teachers.live import LiveTeacher
from haystack_distill.teachers.teacher import Teacher

TeacherSource: TypeAlias = Reader | Teacher | Sequence[Reader | Teacher]


def teacher_for(source: TeacherSource, request: OutputRequest) -> Teacher:
    """The teacher that gives what is requested at the least cost.

    A reader is run once and cached where logits are all that is requested; otherwise it runs in every step, and once
    for each batch, whatever is learnt from it. Several readers are averaged.

    Args:
        source: A reader, several readers, or a teacher, which is taken as it is.
        request: What the objective needs.

    Raises:
        DistilError: `source` is none of these.
    """
    if isinstance(source, Teacher):
        return source
    if isinstance(source, Reader):
        source.require_weights()
        return LiveTeacher(source) if request.beyond_logits else CachedTeacher(source)
    if isinstance(source, Sequence) and not isinstance(source, str):
        members = [teacher_for(one, request) for one in source]
        return members[0] if len(members) == 1 else EnsembleTeacher(members)
    raise DistilError(f"a teacher must be a Reader, a list of readers or a Teacher, not {type(source).__name__}")


def readers_of(source: TeacherSource) -> list[Reader | LanguageModel]:
    """The models behind a teacher; none for a teacher of the user's own."""
    if isinstance(source, LiveTeacher):
        return [source.model]
    if isinstance(source, CachedTeacher):
        return [source.reader]
    if isinstance(source, EnsembleTeacher):
        return readers_of(source.teachers)
    if isinstance(source, Sequence) and not isinstance(source, str):
        return [reader for one in source for reader in readers_of(one)]
    return [source] if isinstance(source, Reader) else []
