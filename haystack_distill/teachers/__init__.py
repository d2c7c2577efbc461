"""Teachers: where an objective's teacher outputs come from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haystack_distill.teachers.cached import CachedTeacher
    from haystack_distill.teachers.ensemble import EnsembleTeacher
    from haystack_distill.teachers.live import LiveTeacher
    from haystack_distill.teachers.teacher import Teacher

__all__ = ["CachedTeacher", "EnsembleTeacher", "LiveTeacher", "Teacher"]

_MODULES = {"CachedTeacher": "cached", "EnsembleTeacher": "ensemble", "LiveTeacher": "live", "Teacher": "teacher"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
