"""The table and the page of a comparison, from records that are made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from haystack_distill import DistilError
from haystack_distill.reporting import comparison
from haystack_distill.reporting.comparison import require_comparable, table_of, write_comparison


def record(name: str, seed: int | None = 1, right: int = 2, **changed: Any) -> dict[str, Any]:
    """A reader that is right on the first of four questions."""
    f1 = [float(number < right) for number in range(4)]
    metrics = {"exact": 25.0 * right, "f1": 25.0 * right, "total": 4}
    shared = {"teacher": "t", "dev_data": "d", "windows": {"max_seq_len": 384}, "precision": "fp32", "device": "cpu"}
    made: dict[str, Any] = {
        "name": name,
        "comparable": shared | {"student": {"layers": 2}, "data": "x", "steps": 10},
        "measurements": {
            "metrics": metrics,
            "examples": [{"f1": one} for one in f1],
            "parameters": 1000,
            "megabytes": 4.0,
            "milliseconds": 5.0,
        },
        "timed": True,
        "session": "one",
        "processor": {"cpu": "A <Processor>", "instructions": ["avx2"], "threads": 2, "device": "cpu"},
        "versions": {"torch": "2"},
    }
    if seed is not None:
        made |= {"seed": seed, "questions": 100, "steps": 10, "seconds": 20.0 + seed, "trained": 900, "choice": {}}
        made |= {"memory_megabytes": {"resident": 500.0 + seed, "gpu": None}}
    return made | changed


TEACHER = record("teacher", None, right=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chart is made but not drawn."""
    monkeypatch.setattr(comparison, "png_of", lambda figure: b"\x89PNG" + bytes(20))


def test_a_table(tmp_path: Path) -> None:
    students = [record("b", 2, right=3), record("b", 1, right=1), record("a", 1), record("a", 2), record("late")]
    content = write_comparison(tmp_path, students, [TEACHER], order=["a", "b"], baseline="a", notes=["<Note>."])
    assert [row["name"] for row in content["rows"]] == ["teacher", "a", "b", "late"]
    _, a, b, _ = content["rows"]
    assert b["seeds"] == [1, 2]
    assert b["f1_by_seed"] == [25.0, 75.0]
    assert (b["f1"], b["of_teacher"], b["seconds"], b["memory_megabytes"]) == (50.0, 50.0, 21.5, 502.0)
    assert a["difference"] is None
    assert b["difference"]["difference"] == 0
    assert b["difference"]["low"] < 0 < b["difference"]["high"]
    titles, lines = table_of(content)
    row = dict(zip(titles, lines[2], strict=True))
    assert row["F1"] == "50.0 (25.0 to 75.0)"
    assert row["difference to a"].startswith("+0.0 (-")
    assert (row["seconds"], row["memory, MB"], row["parameters trained"]) == ("22", "502", "900")
    assert json.loads((tmp_path / "comparison.json").read_text()) == content
    page = (tmp_path / "comparison.html").read_text()
    for part in ("50.0 (25.0 to 75.0)", "&lt;Note&gt;.", "A &lt;Processor&gt; (avx2), 2 threads", "10 optimiser steps"):
        assert part in page
    assert "Values that were tried" not in page


def test_seconds_of_two_calls_and_of_stopped_runs_are_not_put_side_by_side(tmp_path: Path) -> None:
    for other in (record("b", session="two"), record("b", timed=False)):
        content = write_comparison(tmp_path, [record("a"), other], [TEACHER], order=["a"], baseline="a")
        assert [row["milliseconds"] for row in content["rows"]] == [None] * 3
        assert (
            dict(zip(*[one if isinstance(one[0], str) else one[1] for one in table_of(content)], strict=True))[
                "seconds"
            ]
            == "-"
        )
        assert "No seconds" in " ".join(content["notes"])


def test_answerable_questions_apart_and_chosen_values(tmp_path: Path) -> None:
    one, teacher = record("a"), record("teacher", None)
    for made in (one, teacher):
        made["measurements"]["metrics"] |= {"HasAns_f1": 30.0, "NoAns_f1": 70.0}
    tried = [{"values": {"temperature": value}, "exact": 1.0, "f1": 2.0} for value in ("1", "2")]
    one["choice"] = {"chosen": {"temperature": "2"}, "tried": tried}
    content = write_comparison(tmp_path, [one], [teacher], order=["a"], baseline="none of them")
    titles, lines = table_of(content)
    row = dict(zip(titles, lines[1], strict=True))
    assert (row["F1, answerable"], row["F1, unanswerable"]) == ("30.0", "70.0")
    assert row["method"] == "a (temperature 2)"
    assert "Values that were tried" in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        (
            "precision",
            "bf16",
            r"arm b, seed 1 cannot be put into one table with arm a, .* precision differ \(bf16 and fp32\)",
        ),
        ("steps", 11, r"optimiser steps differ \(11 and 10\)"),
        ("data", "other", "training questions differ"),
        ("student", {"layers": 3}, "student differ; remove"),
    ],
)
def test_what_is_never_in_one_table(what: str, value: Any, message: str) -> None:
    other = record("b")
    other["comparable"] = other["comparable"] | {what: value}
    with pytest.raises(DistilError, match=message):
        require_comparable([record("a"), other], [TEACHER])


def test_a_teacher_of_other_questions_is_refused_but_int8_is_not() -> None:
    int8 = record("teacher-int8", None)
    int8["comparable"] = int8["comparable"] | {"precision": "int8"}
    require_comparable([record("a")], [TEACHER, int8])
    int8["comparable"] = int8["comparable"] | {"dev_data": "other"}
    with pytest.raises(DistilError, match=r"the teacher-int8 cannot be put .* dev questions differ"):
        require_comparable([record("a")], [TEACHER, int8])
