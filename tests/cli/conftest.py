"""Readers on disk for the tests of the command line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haystack_distill import Reader, students


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Any:
    logger = logging.getLogger("haystack_distill")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers, logger.level = handlers, level


@pytest.fixture
def teacher_dir(tiny_reader: Callable[..., Reader], tmp_path: Path) -> Path:
    return tiny_reader(seed=1).save(tmp_path / "teacher")


@pytest.fixture
def student_dir(tiny_reader: Callable[..., Reader], tmp_path: Path) -> Path:
    return students.from_teacher(tiny_reader(seed=1), layers=2).save(tmp_path / "student")
