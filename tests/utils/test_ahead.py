"""Items that a thread makes one ahead: the same ones in the same order, and errors where they belong."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from haystack_distill import Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.objectives import PredictionLayer
from haystack_distill.training import loop
from haystack_distill.utils.ahead import one_ahead
from haystack_distill.utils.stopwatch import Stopwatch


def test_all_items_in_order() -> None:
    assert list(one_ahead(iter(range(5)))) == [0, 1, 2, 3, 4]
    assert list(one_ahead(iter([None, None]))) == [None, None]
    assert list(one_ahead(iter([]))) == []


def test_the_next_one_is_made_while_this_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            assert threading.current_thread() is not threading.main_thread()
            event.set()
            yield number

    for number in one_ahead(items()):
        assert number == 2 or made[number + 1].wait(timeout=30)
        assert number + 2 > 2 or not made[number + 2].is_set()  # one ahead, not two


def test_an_error_comes_out_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    found = one_ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="two"):
        next(found)


def test_it_can_be_left_early() -> None:
    before = threading.active_count()
    found = one_ahead(iter(range(100)))
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_training_with_batches_made_ahead_is_the_same(
    tiny_reader: Callable[..., Reader], squad_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU batches are made ahead; here both ways run on the processor."""
    teacher = tiny_reader()

    def losses() -> list[float]:
        student = students.from_teacher(teacher, layers=1)
        settings = TrainingSettings(
            n_epochs=2, batch_size=2, gradient_accumulation_steps=2, log_every=1, progress=False, precision="fp32"
        )
        history = ReaderTrainer(student, None, settings).distil(teacher, squad_file, PredictionLayer()).history
        return [line["loss"] for line in history if "loss" in line]

    usual, loaders = losses(), []

    class Ahead(loop._LoaderAhead):
        def __iter__(self) -> Iterator[object]:
            loaders.append(self)
            return super().__iter__()

    assert issubclass(Ahead, DataLoader)
    monkeypatch.setattr(loop, "DataLoader", Ahead)
    assert losses() == usual
    assert len(loaders) == 2  # one an epoch


def test_logits_of_a_device_are_those_of_the_processor(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    reader = tiny_reader().replace(batch_size=1)
    windows = reader.cut(load_examples(squad_file))
    rows = range(len(windows))
    usual = list(reader.logits(windows, rows))
    batches = reader._batches(windows, torch.arange(len(windows)).numpy())
    ahead = list(reader._logits_on_device(batches))
    assert len(usual) == len(ahead) > 1
    for (batch, *found), (other, *again) in zip(usual, ahead, strict=True):
        assert torch.equal(batch["window"], other["window"])
        assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))
    watch = Stopwatch()
    with watch.running():
        list(reader._logits_on_device(reader._batches(windows, torch.arange(len(windows)).numpy())))
    assert {"batches", "model"} <= watch.laps[0].keys()
