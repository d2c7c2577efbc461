"""How long the parts of a piece of work take, measured only while somebody asks.

The work names its parts once, `with part("model"): ...`; without a stopwatch that costs nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

_running: ContextVar["Stopwatch | None"] = ContextVar("stopwatch", default=None)
_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


class Stopwatch:
    """Seconds by part, each without those of the parts within it.

    Args:
        synchronise: Is called before each reading of the clock: what waits for a device that computes on its own.

    Attributes:
        laps: The seconds of each lap by part; what belongs to no part is `REST`.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.running():
        ...     with part("sorting"):
        ...         numbers = sorted(range(1000))
        >>> list(watch.laps[0])
        ['rest', 'sorting']
    """

    REST = "rest"

    def __init__(self, synchronise: Callable[[], object] | None = None) -> None:
        self.laps: list[dict[str, float]] = []
        self._synchronise = synchronise
        self._open = [self.REST]
        self._since = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measure what runs within, in this thread."""
        self.laps.append({})
        self._since = self._now()
        token = _running.set(self)
        try:
            yield
        finally:
            self._book()
            _running.reset(token)

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _lap(self) -> None:
        self._book()
        self.laps.append({})

    def _book(self) -> None:
        """Add the time since the last call to the part that is open."""
        now = self._now()
        lap, name = self.laps[-1], self._open[-1]
        lap[name] = lap.get(name, 0.0) + now - self._since
        self._since = now

    def _now(self) -> float:
        if self._synchronise is not None:
            self._synchronise()
        return time.perf_counter()


def part(name: str) -> AbstractContextManager[None]:
    """What runs within is a part of the work, for the stopwatch that is running, if one is.

    A generator must not yield within it: whatever its caller does then would count.
    """
    watch = _running.get()
    return _NOTHING if watch is None else watch._part(name)


def next_lap() -> None:
    """The next question, or the next step, begins."""
    watch = _running.get()
    if watch is not None:
        watch._lap()
