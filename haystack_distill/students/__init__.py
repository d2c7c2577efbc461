"""Ways to create a student: cut from a teacher, newly initialised with a smaller shape, on top of a general student, or
with a smaller vocabulary.

A model from the hub or a directory can be a student as it is: `Reader.load(name)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haystack_distill.students.configured import fresh
    from haystack_distill.students.cut import from_teacher
    from haystack_distill.students.encoder import from_language_model
    from haystack_distill.students.vocabulary import prune_vocabulary

__all__ = ["fresh", "from_language_model", "from_teacher", "prune_vocabulary"]

_MODULES = {
    "fresh": "configured",
    "from_language_model": "encoder",
    "from_teacher": "cut",
    "prune_vocabulary": "vocabulary",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
