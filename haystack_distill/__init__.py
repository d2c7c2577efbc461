"""Distil question answering readers for Haystack: a big, slow teacher in; a small, fast student out."""

import os
from typing import TYPE_CHECKING

from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.auto_classes import know_own_models
from haystack_distill.utils.lazy import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "Answer": "haystack_distill.models.answers",
        "Reader": "haystack_distill.models.reader",
        "ReaderTrainer": "haystack_distill.training.reader_trainer",
        "RunResult": "haystack_distill.training.run_directory",
        "TrainingSettings": "haystack_distill.training.settings",
        "WindowSettings": "haystack_distill.data.window_settings",
    },
)

know_own_models()
