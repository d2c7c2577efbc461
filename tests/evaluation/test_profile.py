"""Where a reader's time goes."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from haystack_distill import Reader, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.errors import DataError, DistilError
from haystack_distill.evaluation.profile import profile_reader

PARTS = {"tokenising", "batches", "model", "spans", "rest"}


def test_the_parts_are_those_of_a_question(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    found = profile_reader(tiny_reader(), squad_file, questions=4)
    assert (found.unit, found.n) == ("question", 4)
    assert set(found.once) == {"reading"}
    assert found.once["reading"] > 0
    assert set(found.each) == PARTS
    assert all(seconds > 0 for seconds in found.each.values())
    assert found.seconds == pytest.approx(sum(found.each.values()))
    assert found.windows >= 1
    assert found.device == f"cpu, {tiny_reader().precision}, 1 thread"


def test_time_is_booked_where_it_is_spent(
    tiny_reader: Callable[..., Reader], squad_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tiny_reader()
    forward = reader.model.forward

    def slow(*arguments: object, **keywords: object) -> object:
        time.sleep(0.05)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(reader.model, "forward", slow)
    found = profile_reader(reader, squad_file, questions=2)
    assert found.each["model"] >= 0.05
    assert found.each["model"] / found.seconds > 0.5


def test_more_passages_are_more_windows(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    rows = "".join(f"q{n},One article,What is it?,It is number {n}.,number,\n" for n in range(6))
    data = tmp_path / "rows.csv"
    data.write_text("id,title,question,context,answer,answer_start\n" + rows)
    assert profile_reader(tiny_reader(), data, questions=2).windows == 1
    assert profile_reader(tiny_reader(), data, questions=2, passages=3).windows == 3


def test_questions_need_no_labels(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text('{"question": "Who wrote it?", "context": "Ada Lovelace wrote it in 1843."}\n')
    assert profile_reader(tiny_reader(), data).n == 1


def test_early_exits_have_the_same_parts(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    fast = students.early_exit(tiny_reader()).replace(speed=0.5)
    assert set(profile_reader(fast, squad_file, questions=2).each) == PARTS


def test_what_cannot_be_measured_is_refused(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    for name in ("questions", "passages"):
        with pytest.raises(DistilError, match=f"{name} must be at least 1"):
            profile_reader(tiny_reader(), squad_file, **{name: 0})
    with pytest.raises(DistilError, match="99 contexts with its title"):
        profile_reader(tiny_reader(), squad_file, passages=99)
    with pytest.raises(DataError, match="no questions: give"):
        profile_reader(tiny_reader(), load_examples(squad_file).select([]))
