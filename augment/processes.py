"""Several processes that work on articles, or this one alone."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from augment.settings import AugmentSettings
from augment.worker import Worker
from haystack_distill.errors import DistilError


class ProcessEnded(DistilError):
    """A process ended before its work was done; what was finished before is kept."""


class Processes:
    """Calls the methods of a `Worker`, in this process or in several.

    Args:
        number: how many processes; 1 works in this one.
        settings: the worker's.
        work: the worker's.
    """

    def __init__(self, number: int, settings: AugmentSettings, work: Path) -> None:
        self._number = number
        self._here = Worker(settings, work)
        self._pool: ProcessPoolExecutor | None = None
        if number > 1:
            self._pool = ProcessPoolExecutor(
                number, multiprocessing.get_context("spawn"), initializer=_start, initargs=(settings, work)
            )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, method: str, calls: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
        """What the worker's `method` returns for each tuple of arguments, as it comes; few calls wait at a time.

        Raises:
            DistilError: a process was killed.
        """
        if self._pool is None:
            for call in calls:
                yield getattr(self._here, method)(*call)
            return
        waiting: set[Future] = set()
        try:
            for call in calls:
                waiting.add(self._pool.submit(_call, method, *call))
                if len(waiting) > self._number:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise ProcessEnded(
                "one of the processes ended at once or was killed: if memory ran out, make the same call with fewer "
                "processes, which resumes from here; in a script of your own, put the call under "
                'if __name__ == "__main__":'
            ) from error


_worker: Worker | None = None  # of a process that `Processes` started


def _start(settings: AugmentSettings, work: Path) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the others
    parent = multiprocessing.parent_process()
    if parent is not None:  # else a process whose parent was killed would write on into a directory of others

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    if settings.model is None:
        # NLTK imports them for what no tagger uses, and can do without: seconds in each process.
        for package in ("scipy", "sklearn"):
            sys.modules.setdefault(package, None)  # type: ignore[arg-type]
    _worker = Worker(settings, work)


def _call(method: str, *arguments: Any) -> Any:
    assert _worker is not None
    return getattr(_worker, method)(*arguments)
