"""The stopwatch for the parts of a piece of work."""

import time

import pytest

from haystack_distill.utils.stopwatch import Stopwatch, next_lap, part


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose only entry is the time."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_part_is_measured_without_those_within_it(clock: list[float]) -> None:
    watch = Stopwatch()
    with watch.running():
        clock[0] += 1
        with part("outer"):
            clock[0] += 2
            with part("inner"):
                clock[0] += 4
            clock[0] += 8
        clock[0] += 16
        with part("inner"):
            clock[0] += 32
    assert watch.laps == [{"rest": 17.0, "outer": 10.0, "inner": 36.0}]


def test_a_lap_ends_where_the_next_one_begins(clock: list[float]) -> None:
    watch = Stopwatch()
    with watch.running():
        clock[0] += 1
        next_lap()
        with part("model"):
            clock[0] += 2
            next_lap()
            clock[0] += 3
    assert watch.laps == [{"rest": 1.0}, {"rest": 0.0, "model": 2.0}, {"model": 3.0, "rest": 0.0}]


def test_without_a_running_stopwatch_nothing_is_measured(clock: list[float]) -> None:
    watch = Stopwatch()
    with watch.running():
        clock[0] += 1
    with part("model"):
        clock[0] += 2
    next_lap()
    assert watch.laps == [{"rest": 1.0}]


def test_a_part_that_fails_ends(clock: list[float]) -> None:
    watch = Stopwatch()

    def fail() -> None:
        with watch.running(), part("model"):
            clock[0] += 1
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert watch.laps == [{"rest": 0.0, "model": 1.0}]
    with watch.running():
        clock[0] += 2
    assert watch.laps[1] == {"rest": 2.0}


def test_a_device_is_waited_for_before_each_reading(clock: list[float]) -> None:
    def wait() -> None:
        clock[0] += 100

    watch = Stopwatch(wait)
    with watch.running(), part("model"):
        pass
    assert watch.laps == [{"rest": 200.0, "model": 100.0}]
