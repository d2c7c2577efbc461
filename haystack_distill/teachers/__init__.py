"""Teachers: the sources of the teacher outputs that objectives need."""

from typing import TYPE_CHECKING

from haystack_distill.utils.lazy import lazy_names

if TYPE_CHECKING:
    from haystack_distill.teachers.by_data import Source, Sources, TeachersByData
    from haystack_distill.teachers.cached import CachedTeacher
    from haystack_distill.teachers.ensemble import EnsembleTeacher
    from haystack_distill.teachers.live import LiveTeacher
    from haystack_distill.teachers.teacher import Teacher

__all__ = ["CachedTeacher", "EnsembleTeacher", "LiveTeacher", "Source", "Sources", "Teacher", "TeachersByData"]

__getattr__ = lazy_names(
    __name__,
    {
        "CachedTeacher": "haystack_distill.teachers.cached",
        "EnsembleTeacher": "haystack_distill.teachers.ensemble",
        "LiveTeacher": "haystack_distill.teachers.live",
        "Source": "haystack_distill.teachers.by_data",
        "Sources": "haystack_distill.teachers.by_data",
        "Teacher": "haystack_distill.teachers.teacher",
        "TeachersByData": "haystack_distill.teachers.by_data",
    },
)
