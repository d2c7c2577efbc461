"""Distil question answering readers for Haystack: a big, slow teacher in; a small, fast student out."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from haystack_distill.errors import DataError, DistilError

if TYPE_CHECKING:
    from haystack_distill.features import WindowSettings
    from haystack_distill.reader import Answer, Reader
    from haystack_distill.runs import RunResult
    from haystack_distill.settings import TrainingSettings
    from haystack_distill.trainer import ReaderTrainer

__version__ = "0.1.0"

# PyTorch asks Linux for huge pages if it finds this at its first tensor: on a processor about a tenth faster.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = [
    "Answer",
    "DataError",
    "DistilError",
    "Reader",
    "ReaderTrainer",
    "RunResult",
    "TrainingSettings",
    "WindowSettings",
    "__version__",
]

# Where the public names live. They are imported when first used: torch takes seconds, and help must not.
_MODULES = {
    "Answer": "reader",
    "Reader": "reader",
    "ReaderTrainer": "trainer",
    "RunResult": "runs",
    "TrainingSettings": "settings",
    "WindowSettings": "features",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
