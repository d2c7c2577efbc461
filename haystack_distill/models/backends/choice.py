"""Backend "auto": what is fastest on this machine, measured once and remembered."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import cached_file

from haystack_distill.data.windows import PairWindows
from haystack_distill.errors import DistilError, WriteError
from haystack_distill.models.backends.exported import (
    FILES,
    INT8_BACKENDS,
    export_record,
    is_dynamic,
    overflows_here,
    require_same_weights,
    runtime_of,
)
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.cache import cache_directory
from haystack_distill.utils.devices import resolve_precision
from haystack_distill.utils.hashing import hash_json
from haystack_distill.utils.processor import processor_record, usable_cores

if TYPE_CHECKING:
    from haystack_distill.models.reader import Reader

logger = logging.getLogger(__name__)

MAX_F1_DROP = 0.3  # what int8 may lose where the record of an export is older than the setting
PASSAGES = 10  # of a typical request, as a retriever finds them
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
_PACKAGES = ("haystack-distill", "torch", "transformers", "onnxruntime", "openvino")
_CACHE = "backends"  # the folder of the package's cache directory
_MOST_PASSAGES = 24  # that are timed: more of them only make more batches of the same size
_ROUNDS = 60
_SECONDS = 3.0  # no round begins after this, once there were two
_FAR_BEHIND = 1.7  # as slow as this times the fastest in the first two rounds, or later: not timed again
_SENTENCE = "Bees dance to tell their sisters where the flowers are, and how far. "
_QUESTION = "Why do bees dance?"


def fastest_reader(
    name: str,
    load: Callable[[str], "Reader"],
    *,
    num_threads: int | None,
    passages: int,
    settings: Mapping[str, Any],
    **hub: Any,
) -> "Reader":
    """The reader in the backend that answers a typical request fastest on this processor.

    Candidates are PyTorch and what `export.exporting.export_reader` wrote into the reader's directory. An int8 model is
    one only where its record holds F1 on `--data`, within the export's `max_f1_drop` of PyTorch's, and where this
    processor computes what was measured (`exported.overflows_here`).
    Each candidate answers the same request several times, in turns; its fastest time counts. The choice is kept in the
    package's cache directory (`utils.cache.cache_directory`), by the shape of the model and the sizes of its files,
    processor, versions, threads and the request: what the weights are changes no time.

    Args:
        name: A directory or hub name.
        load: Loads it in a backend.
        num_threads: As for `Reader.load`.
        passages: The passages of a typical request.
        settings: The constructor's settings that the reader is loaded with.
        hub: `token`, `revision`.

    Raises:
        DistilError: The reader cannot be loaded in PyTorch.
    """
    candidates = _candidates(name, settings.get("precision", "auto"), **hub)
    if not candidates:
        logger.info("backend 'auto' is 'torch' for %s: nothing else that may be taken was exported", name)
        return load("torch")
    request = {entry: str(settings.get(entry)) for entry in ("window_settings", "batch_size", "precision")}
    request["auto"] = resolve_precision("auto", torch.device("cpu"))
    config = json.loads(Path(str(cached_file(name, "config.json", **hub))).read_text(encoding="utf-8"))
    key = hash_json(
        {entry: value for entry, value in config.items() if entry not in ("_name_or_path", "transformers_version")},
        {backend: [file.stat().st_size for file in files] for backend, files in candidates.items()},
        processor_record(torch.device("cpu")),
        usable_cores(),
        {package: _version(package) for package in _PACKAGES},
        num_threads,
        min(passages, _MOST_PASSAGES),
        request,
    )
    remembered = _remembered(key)
    if remembered in ("torch", *candidates):
        logger.info("backend 'auto' is %r for %s, as measured before", remembered, name)
        return load(str(remembered))
    threads = torch.get_num_threads()
    readers = {"torch": load("torch")}
    windows = _request(readers["torch"], passages)
    _run(readers["torch"], windows)
    for backend in candidates:
        try:
            reader = load(backend)
            _run(reader, windows)
            readers[backend] = reader
        except Exception as error:  # the errors of the runtimes have no common class
            logger.warning("backend 'auto' does without %r (%s)", backend, " ".join(str(error).split())[:300])
    milliseconds = _measure(readers, windows)
    chosen = min(milliseconds, key=lambda backend: milliseconds[backend])
    times = ", ".join(f"{backend} {one:.1f} ms" for backend, one in milliseconds.items())
    logger.info("backend 'auto' is %r for %s: %s for %s passages", chosen, name, times, min(passages, _MOST_PASSAGES))
    if len(readers) == 1 + len(candidates):  # another time the others may open and run
        _remember(key, {"backend": chosen, "milliseconds": milliseconds})
    if chosen != "torch":
        torch.set_num_threads(threads)  # as it was before PyTorch was loaded to be measured
    return readers[chosen]


def installed_runtimes() -> list[str]:
    """The runtimes, "onnx" and "openvino", that are installed here."""
    return [runtime for runtime, module in _RUNTIMES.items() if find_spec(module) is not None]


def _candidates(name: str, precision: str, **hub: Any) -> dict[str, list[Path]]:
    """The backends beside PyTorch that may be taken and compute in a precision, with their files."""
    found = {}
    records = {runtime: export_record(name, runtime, **hub) for runtime in installed_runtimes()}
    for backend, files in FILES.items():
        record = records.get(runtime_of(backend), {})
        if backend not in record.get("backends", {}):
            continue
        if backend in INT8_BACKENDS and not keeps_promise(record, backend):
            continue
        if overflows_here(record, backend):
            logger.warning(
                "backend 'auto' does without %r, whose weights of 8 bits would overflow on this processor (no VNNI): "
                "export %s here, or without --no-reduce-range",
                *(backend, name),
            )
            continue
        if precision == "bf16" and (runtime_of(backend) == "onnx" or is_dynamic(record, backend)):
            continue  # they compute in fp32 beside int8
        try:
            require_same_weights(name, backend)
            found[backend] = [Path(str(cached_file(name, file, **hub))) for file in files]
        except DistilError as error:
            logger.warning("backend 'auto' does without %r (%s)", backend, error)
        except (OSError, ValueError) as error:
            logger.warning("backend 'auto' does without %r, which %s lacks (%s)", backend, name, error)
    return found


def keeps_promise(record: Mapping[str, Any], backend: str) -> bool:
    """Whether the record of an export (`export.json`) holds that a backend loses no more F1 than it may.

    The limit is `max_f1_drop` of the export's settings. Where nothing was measured no promise is kept.
    """
    measured = [record.get("backends", {}).get(one, {}).get("metrics", {}).get("f1") for one in ("torch", backend)]
    limit = record.get("settings", {}).get("max_f1_drop", MAX_F1_DROP)
    return None not in measured and measured[0] - measured[1] <= limit


def _request(reader: "Reader", passages: int) -> PairWindows:
    """The windows of a typical request."""
    texts = [_SENTENCE * (4 + number % 7) for number in range(min(passages, _MOST_PASSAGES))]
    return reader.cut_pairs([(_QUESTION, text) for text in texts])


def _run(reader: "Reader", windows: PairWindows) -> None:
    for _ in reader.logits(windows, range(len(windows))):
        pass


def _measure(readers: Mapping[str, "Reader"], windows: PairWindows) -> dict[str, float]:
    """Milliseconds of the fastest of several forward passes over a request, by backend.

    Each has run once before: first passes allocate memory and fill caches. Backends that are far behind in two rounds
    are left out of the others; in one the machine may have been busy.
    """
    best: dict[str, float] = {}
    began = time.perf_counter()
    for number in range(_ROUNDS):
        if number >= 2 and time.perf_counter() - began > _SECONDS:
            break
        for backend, reader in readers.items():
            if number >= 2 and best[backend] > _FAR_BEHIND * min(best.values()):
                continue
            start = time.perf_counter()
            _run(reader, windows)
            best[backend] = min(best.get(backend, float("inf")), 1000 * (time.perf_counter() - start))
    return best


def _remembered(key: str) -> str | None:
    """The backend that was chosen before, if any."""
    try:
        content = json.loads((cache_directory() / _CACHE / f"{key}.json").read_text(encoding="utf-8"))
        return content.get("backend") if isinstance(content, dict) else None
    except (OSError, ValueError, DistilError):
        return None  # it is measured again


def _remember(key: str, content: dict[str, Any]) -> None:
    try:
        folder = cache_directory() / _CACHE
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{key}.json", content, durable=False)
    except (OSError, WriteError, DistilError) as error:
        logger.warning("the choice of backend 'auto' cannot be kept, and is measured again next time (%s)", error)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
