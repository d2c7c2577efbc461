"""Distil question answering readers for Haystack: a big, slow teacher in; a small, fast student out."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from haystack_distill.errors import DataError, DistilError

if TYPE_CHECKING:
    from haystack_distill.data.window_settings import WindowSettings
    from haystack_distill.models.answers import Answer
    from haystack_distill.models.reader import Reader
    from haystack_distill.training.reader_trainer import ReaderTrainer
    from haystack_distill.training.run_directory import RunResult
    from haystack_distill.training.settings import TrainingSettings

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
    "Answer": "models.answers",
    "Reader": "models.reader",
    "ReaderTrainer": "training.reader_trainer",
    "RunResult": "training.run_directory",
    "TrainingSettings": "training.settings",
    "WindowSettings": "data.window_settings",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
