"""Prediction and evaluation in several processes: the same as in one."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from haystack_distill import Reader
from haystack_distill.data.squad.load import load_examples
from haystack_distill.evaluation import processes as together
from haystack_distill.evaluation.processes import evaluate_distributed, predict_distributed


def process(index: int, n: int) -> Any:
    return SimpleNamespace(process_index=index, num_processes=n, is_main_process=index == 0)


def test_shares_of_predictions_are_those_of_one_process(
    tiny_reader: Callable[..., Reader], squad_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tiny_reader()
    windows = reader.cut(load_examples(squad_file))
    alone = predict_distributed(reader, windows, process(0, 1))
    own: list[Any] = []
    monkeypatch.setattr(together, "gather_object", lambda part: own.extend(part) or own)
    for index in range(3):  # one after the other, where real ones would gather at once
        predict_distributed(reader, windows, process(index, 3))
    assert [[answer.text for answer in one.answers] for one in own] == [
        [answer.text for answer in one.answers] for one in alone
    ]
    monkeypatch.setattr(together, "gather_object", lambda part: own)
    assert evaluate_distributed(reader, windows, process(0, 3)) == reader.evaluate(squad_file)
