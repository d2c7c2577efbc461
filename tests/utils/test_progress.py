"""Progress: bars in a terminal, plain lines elsewhere, nothing where nothing is to be visible."""

import io
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from haystack_distill.utils import console, progress
from haystack_distill.utils.progress import duration, progress_bar


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def a_terminal(monkeypatch: pytest.MonkeyPatch, width: int = 120) -> io.StringIO:
    """What is visible in a terminal of this width."""
    written = io.StringIO()
    monkeypatch.setattr(console, "STDERR", Console(file=written, force_terminal=True, width=width, color_system=None))
    return written


def test_a_long_pass_leaves_plain_lines_where_there_is_no_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("teacher", 4000, "windows") as bar:
        for _ in range(4):
            clock.now += 20
            bar.advance(1000)
    assert capsys.readouterr() == (
        "",
        "teacher: 2,000/4,000 windows, 50.0 windows/s, 40 s left\nteacher: 4,000 windows in 1 min 20 s, 50.0 windows/s\n",
    )


def test_a_short_pass_leaves_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("evaluation", 10, "windows") as bar:
        clock.now += 1
        bar.advance(10)
    assert capsys.readouterr() == ("", "")


def test_values_are_a_line_each_where_there_is_no_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training", 200, "steps", speed=("windows", 16)) as bar:
        clock.now += 8
        bar.advance(20)
        bar.report("loss 1.234", "distillation 0.9, labels 0.3")
        clock.now += 100
        bar.advance(180)
        bar.report("loss [1]")
        bar.announce("[bold] is no markup")
    assert capsys.readouterr().err.splitlines() == [
        "step 20/200 loss 1.234 (distillation 0.9, labels 0.3) 40.0 windows/s, 1 min 12 s left",
        "step 200/200 loss [1] 29.6 windows/s",
        "[bold] is no markup",
    ]


@pytest.mark.parametrize(("width", "details"), [(80, False), (140, True)])
def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch, clock: Clock, width: int, details: bool) -> None:
    written = a_terminal(monkeypatch, width)
    with progress_bar("training", 200, "steps", speed=("windows", 16)) as bar:
        bar.report("loss 1.234", "distillation 0.9, labels 0.3")
        clock.now += 8
        bar.advance(20)
        bar.announce("step 20/200 evaluation: F1 40.0")
    found = written.getvalue()
    for part in ("training", "━", "20/200 steps", "loss 1.234", "40.0 windows/s", "1 min 12 s left", "8 s", "F1 40.0"):
        assert part in found
    assert ("(distillation 0.9, labels 0.3)" in found) == details
    assert found.rstrip(" ").endswith("\x1b[?25h")  # the cursor is there again


def test_a_bar_inside_another_does_not_slow_it_down(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    written = a_terminal(monkeypatch)
    with progress_bar("training", 200, "steps") as bar:
        clock.now += 10
        bar.advance(100)
        with progress_bar("evaluation", 50, "windows") as inner:
            clock.now += 10
            inner.advance(50)
        bar.advance(0)
        assert (bar.speed, bar.left) == ("10.0 steps/s", "20 s left")
        assert len(bar.display.tasks) == 1  # type: ignore[attr-defined]
    assert "evaluation" in written.getvalue()


def test_a_resumed_run_counts_its_own_speed(clock: Clock) -> None:
    with progress_bar("training", 100, "steps", visible=False, done=90) as bar:
        assert (bar.speed, bar.left) == ("", "")
        clock.now += 1
        bar.advance(5)
        assert (bar.done, bar.speed, bar.left) == (95, "5.0 steps/s", "1 s left")


@pytest.mark.parametrize("case", ["not visible", "another process"])
@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown(
    case: str, terminal: bool, monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    written = a_terminal(monkeypatch) if terminal else io.StringIO()
    if case == "another process":
        monkeypatch.setenv("RANK", "1")
    with progress_bar("training", 10, "steps", visible=case != "not visible") as bar:
        clock.now += 60
        bar.advance(5)
        bar.report("loss 1")
        bar.announce("evaluation")
    assert (written.getvalue(), *capsys.readouterr()) == ("", "", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failure_ends_the_display(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    written = a_terminal(monkeypatch) if terminal else io.StringIO()
    stderr = sys.stderr

    def interrupted() -> None:
        with progress_bar("training", 10, "steps"), progress_bar("evaluation", 10, "windows") as bar:
            bar.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert progress._open == []
    assert sys.stderr is stderr
    assert not terminal or "\x1b[?25h" in written.getvalue()


def test_warnings_go_above_the_bar_and_stdout_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    written = a_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", results := io.StringIO())
    with progress_bar("training", 10, "steps"):
        print("a warning", file=sys.stderr)
        print("a result")
    assert "a warning" in written.getvalue()
    assert results.getvalue() == "a result\n"


def test_bars_are_drawn_a_few_times_per_second_only(monkeypatch: pytest.MonkeyPatch) -> None:
    a_terminal(monkeypatch)
    drawn = []
    monkeypatch.setattr(progress._Drawn, "draw", lambda bar, last=False: drawn.append(bar.done))
    with progress_bar("training", 100_000, "steps") as bar:
        bar._next_picture = time.monotonic() + 1000  # type: ignore[attr-defined]
        began = time.perf_counter()
        for _ in range(100_000):
            bar.advance()
        each = (time.perf_counter() - began) / 100_000
    assert drawn == [0, 100_000]
    assert each < 1e-4


@pytest.mark.parametrize(
    ("jupyter", "widgets", "terminal", "drawn"),
    [
        (True, True, False, True),
        (True, False, False, False),
        (False, True, True, True),
        (False, True, False, False),
    ],
)
def test_where_bars_can_be_drawn(
    jupyter: bool, widgets: bool, terminal: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = SimpleNamespace(is_jupyter=jupyter, is_terminal=terminal, is_dumb_terminal=False)
    monkeypatch.setattr(console, "STDERR", stderr)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: widgets or None)
    assert progress.can_draw() is drawn


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 80, 3599.7, 11100)] == [
        *("0 s", "59 s", "1 min 0 s", "1 min 20 s", "1 h 0 min", "3 h 5 min"),
    ]
