"""Progress on stderr: bars in a terminal or a notebook, plain lines elsewhere (a file, a pipe, a batch job's log).

Only the main process of several shows anything. Counting costs one look at the clock; the display itself is drawn a few
times per second at most, by whoever counts: there is no thread beside the work.
"""

import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator

from rich.progress import BarColumn, Progress, TextColumn

from haystack_distill.utils import console

_DRAWN_EVERY = 0.25  # seconds between two pictures of a bar
_LINE_EVERY = 30.0  # seconds between two plain lines
_SHORT = 2.0  # seconds: what is over sooner leaves no plain line
_WIDE = 110  # columns of a terminal that has room for details beside a bar


class ProgressBar:
    """What is done of a total. By itself it shows nothing; see `progress_bar`.

    Args:
        name: What is being done.
        total: How much there is to do, in units.
        unit: Of what, in the plural: "windows", "steps".
        done: How much was done before, by a run that is resumed.
        speed: In what the speed is given where that is not `unit`, and how many of them make one unit.
    """

    def __init__(self, name: str, total: int, unit: str, done: int = 0, speed: tuple[str, float] | None = None) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.speed_unit, self.speed_factor = speed or (unit, 1.0)
        self.elsewhere = 0.0  # seconds that bars inside this one took
        self._done_before = done
        self._began = time.monotonic()
        self._worked = 0.0  # seconds until the last unit, without those elsewhere

    def advance(self, count: int = 1) -> None:
        """Count `count` units more."""
        self.done += count
        self._worked = self.seconds - self.elsewhere

    def report(self, values: str, details: str = "") -> None:
        """Show values such as a loss: beside the bar (details where there is room), or as a plain line."""

    def announce(self, text: str) -> None:
        """A line that stays: above the bar, or as a plain line."""

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    @property
    def speed(self) -> str:
        """Such as "35.2 windows/s"; empty before anything is done. What bars inside this one took does not count."""
        units = (self.done - self._done_before) * self.speed_factor
        return f"{_rounded(units / self._worked)} {self.speed_unit}/s" if units and self._worked > 0 else ""

    @property
    def left(self) -> str:
        """Such as "1 min 20 s left"; empty before anything is done and at the end."""
        made = self.done - self._done_before
        if not made or self.done >= self.total:
            return ""
        return f"{duration(self.seconds / made * (self.total - self.done))} left"


class _PlainLines(ProgressBar):
    """Values as they are reported; for a long pass without any, a line now and then and one at its end."""

    _reports = False
    _next_line = _LINE_EVERY

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        if not self._reports and self.done < self.total and self.seconds >= self._next_line:
            self._next_line = self.seconds + _LINE_EVERY
            self.announce(_joined(f"{self.name}: {self.done:,}/{self.total:,} {self.unit}", self.speed, self.left))

    def report(self, values: str, details: str = "") -> None:
        self._reports = True
        visible = f"{values} ({details})" if details else values
        self.announce(
            _joined(f"{self.unit.removesuffix('s')} {self.done}/{self.total} {visible} {self.speed}", self.left)
        )

    def announce(self, text: str) -> None:
        console.STDERR.print(text.strip(), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """The last line of a pass that was not short."""
        if not self._reports and self.seconds >= _SHORT:
            self.announce(_joined(f"{self.name}: {self.done:,} {self.unit} in {duration(self.seconds)}", self.speed))


class _Drawn(ProgressBar):
    """A bar of a display, which it shares with the bars inside it."""

    def __init__(self, display: Progress, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self.display = display
        self.task = display.add_task(self.name, total=self.total, completed=self.done, count="", values="", figures="")
        self._values = ""
        self._next_picture = 0.0
        self.draw()

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        if time.monotonic() >= self._next_picture:
            self.draw()

    def report(self, values: str, details: str = "") -> None:
        self._values = f"{values} ({details})" if details and self.display.console.width >= _WIDE else values

    def announce(self, text: str) -> None:
        self.display.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def draw(self, last: bool = False) -> None:
        """Draw it as it is now; at the end with the time that it took."""
        time_ = duration(self.seconds) if last else self.left
        count = f"{self.done:,}/{self.total:,} {self.unit}"
        self.display.update(
            self.task, completed=self.done, count=count, values=self._values, figures=_joined(self.speed, time_)
        )
        self.display.refresh()
        self._next_picture = time.monotonic() + _DRAWN_EVERY


_open: list[ProgressBar] = []  # the bars that are visible now, the outermost first


@contextlib.contextmanager
def progress_bar(
    name: str,
    total: int,
    unit: str,
    *,
    visible: bool = True,
    done: int = 0,
    speed: tuple[str, float] | None = None,
) -> Iterator[ProgressBar]:
    """A bar while something is done: `advance` it. A bar inside another disappears when it is done.

    Args:
        name: What is being done.
        total: How much there is to do, in units.
        unit: Of what, in the plural: "windows", "steps".
        visible: Whether to show anything.
        done: How much was done before, by a run that is resumed.
        speed: In what the speed is given where that is not `unit`, and how many of them make one unit.

    Example:
        >>> with progress_bar("teacher", total=100, unit="windows", visible=False) as bar:
        ...     bar.advance(100)
    """
    arguments = name, total, unit, done, speed
    if not visible or int(os.environ.get("RANK", "0")) != 0:
        yield ProgressBar(*arguments)
        return
    display = next((bar.display for bar in _open if isinstance(bar, _Drawn)), None)
    outer = _open[-1] if _open else None
    with contextlib.ExitStack() as stack:
        bar: _PlainLines | _Drawn
        if not can_draw():
            bar = _PlainLines(*arguments)
            stack.callback(bar.close)
        elif display is None:
            bar = _Drawn(stack.enter_context(_display()), *arguments)
            stack.callback(bar.draw, last=True)
        else:
            bar = _Drawn(display, *arguments)
            stack.callback(display.remove_task, bar.task)
        _open.append(bar)
        try:
            yield bar
        finally:
            _open.remove(bar)
            if outer is not None:
                outer.elsewhere += bar.seconds


def can_draw() -> bool:
    """Whether stderr is a terminal, or a notebook that can show bars."""
    if console.STDERR.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.STDERR.is_terminal and not console.STDERR.is_dumb_terminal


def duration(seconds: float) -> str:
    """Such as "45 s", "1 min 20 s", "3 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _display() -> Progress:
    narrow = console.STDERR.width < _WIDE
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10 if narrow else 30),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[values]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console.STDERR,
        auto_refresh=False,
        # Results go to stdout: it is left alone, unless it is the same terminal, where a bar would write over it.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
