"""Every backend of an exported reader, and what `backend="auto"` makes of them, on three shapes of requests.

    python benchmarks/backends.py --model student --data dev.json

The backends take turns, and the fastest of several rounds counts. The directory is what `haystack-distill export
--runtime all` wrote; int8 is a candidate of "auto" where it was exported with --data and kept its F1.
The shapes: one short passage, ten passages, a thousand windows (or as many as the data has).
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from haystack_distill import DistilError, Reader
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.windows import PairWindows
from haystack_distill.models.backends.exported import BACKENDS
from haystack_distill.utils.cache import CACHE_VARIABLE

SHAPES = {"one short passage": 1, "ten passages": 10, "a thousand windows": 1000}


def read(reader: Reader, windows: PairWindows) -> None:
    """All forward passes over some windows."""
    for _ in reader.logits(windows, range(len(windows))):
        pass


def best_of(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest of several rounds, in which all take turns; one untimed round comes first."""
    seconds = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of an exported reader")
    parser.add_argument("--data", required=True, help="SQuAD file")
    parser.add_argument("--windows", type=int, default=1000, help="of the largest shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    examples = load_examples(given.data)
    rows = range(0, len(examples), max(1, len(examples) // given.windows))
    chosen = examples.select(list(rows)[: given.windows])
    pairs = sorted(zip(chosen["question"], chosen["context"], strict=True), key=lambda pair: len(pair[1]))
    middle = len(pairs) // 2
    requests = {1: pairs[len(pairs) // 10 :][:1], 10: pairs[middle : middle + 10], 1000: pairs}
    readers = {}
    for backend in BACKENDS:
        if backend == "auto":
            continue
        try:
            readers[backend] = Reader.load(given.model, backend=backend, num_threads=given.num_threads, device="cpu")
        except DistilError as error:
            print(f"without {backend}: {error}")
    found: dict[str, dict] = {}
    for shape, passages in SHAPES.items():
        windows = readers["torch"].cut_pairs(requests[passages])
        runs = {f"{name} ({reader.precision})": partial(read, reader, windows) for name, reader in readers.items()}
        rounds = given.rounds if passages > 10 else given.rounds * 5
        seconds = best_of(runs, rounds)
        with tempfile.TemporaryDirectory() as cache:  # so that it measures now
            before = os.environ.get(CACHE_VARIABLE)
            os.environ[CACHE_VARIABLE] = cache
            began = time.perf_counter()
            taken = Reader.load(
                given.model, backend="auto", num_threads=given.num_threads, passages=passages, device="cpu"
            )
            measuring = time.perf_counter() - began
            os.environ.pop(CACHE_VARIABLE) if before is None else os.environ.update({CACHE_VARIABLE: before})
        of_auto = seconds[f"{taken.backend} ({taken.precision})"]
        rates = {name: len(windows) / one for name, one in seconds.items()}
        found[shape] = {
            "windows_per_second": rates,
            "auto": taken.backend,
            "auto_behind_best": of_auto / min(seconds.values()) - 1,
            "auto_seconds": measuring,
        }
        print(f"\n{shape} ({len(windows)} windows)")
        for name, rate in rates.items():
            print(f"  {name:24} {rate:8.1f} windows/s  {1000 * seconds[name]:9.1f} ms")
        behind = found[shape]["auto_behind_best"]
        print(f"  auto: {taken.backend}, {behind:.1%} behind the best, chosen in {measuring:.1f} s")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
