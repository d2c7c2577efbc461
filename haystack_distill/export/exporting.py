"""Export of a reader for ONNX Runtime and OpenVINO, in fp32 and int8, verified against the original model."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.data.windows import AnyWindows, Windows
from haystack_distill.errors import DistilError
from haystack_distill.export import onnx, openvino, promise
from haystack_distill.models.backends.exported import (
    FILES,
    INT8_BACKENDS,
    open_exported,
    remove_exported,
    runtime_of,
    weight_hashes,
)
from haystack_distill.models.backends.onnx_runtime import import_onnx
from haystack_distill.models.backends.openvino_runtime import import_openvino
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.models.early_exit import EarlyExitModel
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.training.run_record import versions
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.checks import check_argument, is_number
from haystack_distill.utils.files import expand_user, require_writable, temporary_directory, writing
from haystack_distill.utils.model_files import EXPORT_RECORD
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.model_inputs import model_inputs
from haystack_distill.utils.processor import processor_record

logger = logging.getLogger(__name__)

INT8 = ("dynamic", "static", "auto", "none")
RUNTIMES = ("onnx", "openvino", "all")
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino", "nncf")}
_NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
_TOLERANCE = 1e-3  # of the fp32 logits, which normally differ by less than 1e-5
_CALIBRATION_WINDOWS = 256
_COMPARED_WINDOWS = 200
_FEW_QUESTIONS = 500  # with fewer, F1 in int8 less F1 in fp32 has a standard error of some tenths of a point
# Inputs for tracing, and for comparing where there is no data: of different lengths.
_PROBES = [
    ("Who wrote it?", "Ada Lovelace wrote it in 1843."),
    ("Where was the harbour built, and by whom?", "The harbour of Lindow was built in 1702 by a mason from Delft."),
    ("Why?", "Bees dance to tell their sisters where the flowers are. " * 12),
]


@dataclass(frozen=True)
class ExportSettings:
    """How a reader is exported.

    Args:
        int8: "dynamic" (int8 weights, activations scaled in every call), "static" (activations scaled once, on
            calibration data), "auto" (both are tried, in several ways, and the fastest is exported that keeps its F1)
            or "none".
        per_channel: For ONNX: whether each output column of a weight has its own int8 scale. OpenVINO's always have.
        reduce_range: For ONNX, and for OpenVINO's static int8: whether weights use 7 of the 8 bits. Processors without
            VNNI add pairs of int8 products in 16 bits and overflow otherwise; with VNNI it costs a little precision and
            no time. OpenVINO's dynamic int8 overflows on none.
        runtime: What the reader is exported for: "onnx" (ONNX Runtime), "openvino" or "all", which is both.
        max_f1_drop: For int8 "auto": how much F1 may be lost against the reader in fp32, in points of a hundred.
    """

    int8: str = "dynamic"
    per_channel: bool = True
    reduce_range: bool = True
    runtime: str = "onnx"
    max_f1_drop: float = 0.3

    def __post_init__(self) -> None:
        for name, words in (("int8", INT8), ("runtime", RUNTIMES)):
            if getattr(self, name) not in words:
                raise DistilError(f"{name} must be one of {', '.join(words)}, not {getattr(self, name)!r}")
        drop = self.max_f1_drop
        check_argument("max_f1_drop", drop, is_number(drop) and drop >= 0, "a number of at least 0")
        if self.int8 != "auto" and drop != ExportSettings.max_f1_drop:
            raise DistilError("max_f1_drop has an effect with int8='auto' only; leave it out, or set that")
        if not (self.per_channel and self.reduce_range):
            if self.runtime == "openvino" and not self.per_channel:
                raise DistilError("per_channel has no effect on OpenVINO's int8; leave it out, or use runtime='onnx'")
            if self.runtime == "openvino" and self.int8 == "dynamic":
                raise DistilError(
                    "reduce_range has no effect on OpenVINO's dynamic int8; leave it out, or use int8='static'"
                )
            if self.int8 == "none":
                raise DistilError("per_channel and reduce_range have no effect with int8='none'; leave them out")
            if self.int8 == "auto":
                raise DistilError("int8='auto' chooses per_channel and reduce_range itself; leave them out")

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that the reader is exported for."""
        chosen = [name for name in FILES if self.runtime in ("all", runtime_of(name))]
        return tuple(name for name in chosen if self.int8 != "none" or name not in INT8_BACKENDS)


def export_reader(
    reader: Reader,
    directory: str | Path,
    settings: ExportSettings | None = None,
    *,
    calibration: ExampleSource | None = None,
    data: ExampleSource | None = None,
) -> dict[str, Any]:
    """Write a reader and, in its folders `onnx` and `openvino`, exported models for `Reader.load(..., backend=...)`.

    `onnx/model.onnx` and `openvino/openvino_model.xml` are the model in fp32 for any batch size and length; those with
    `int8` in their names have int8 weights, a quarter of the size (ONNX Runtime:
    https://onnxruntime.ai/docs/performance/model-optimizations/, OpenVINO: see `export.openvino.Quantisation`).
    `export.json` in each folder records how close they are to the original model, and their metrics. With int8 "auto"
    it has everything that was tried, too; a runtime of which nothing is within the limit gets no int8 model.

    Args:
        reader: A reader with weights.
        directory: The directory for the reader and the exported models. Each file is replaced atomically. What was
            exported before is removed, but for another runtime's models of the same reader.
        settings: The settings of the export; the default is `ExportSettings()`.
        calibration: Examples for static quantisation to scale activations; training data, never evaluation data. For
            int8 "static" and "auto".
        data: Examples to evaluate every backend on. For int8 "auto" they are needed.

    Returns:
        The content of `export.json`.

    Raises:
        DistilError: The extra of a runtime is not installed, the model cannot be exported, the exported model computes
            other logits, calibration data is missing or unused, or what would be written is there and was not exported
            by this package.
        WriteError: The directory or a temporary one cannot be written.
    """
    chosen = settings or ExportSettings()
    if chosen.int8 in ("static", "auto") and calibration is None:
        raise DistilError(
            f"calibration data is needed for int8='{chosen.int8}', training examples to scale activations by: give them"
        )
    if chosen.int8 not in ("static", "auto") and calibration is not None:
        raise DistilError(
            f"calibration data has no effect with int8='{chosen.int8}': choose 'static' or 'auto', or leave it out"
        )
    if chosen.int8 == "auto" and data is None:
        raise DistilError("int8='auto' keeps F1, which needs labelled data to measure it on; give data")
    reader.require_weights()
    if reader.model.config.model_type == "longformer":  # its export fails only after minutes
        raise DistilError(
            f"{type(reader.model).__name__} cannot be exported to ONNX, because the traced attention depends on the "
            "length of the text: use it with backend='torch', or distil it into a model of another type"
        )
    if isinstance(reader.model, EarlyExitModel):
        raise DistilError(
            f"{type(reader.model).__name__} cannot be exported to ONNX, because how many layers run depends on the "
            "text: use it with backend='torch', or export the reader that it was made from"
        )
    if reader.model.config.model_type == MODEL_TYPE and chosen.runtime != "onnx":
        raise DistilError(
            f"{type(reader.model).__name__} cannot be exported for OpenVINO, which runs its LSTM over the padding of a "
            "batch: use runtime='onnx'"
        )
    reader = reader.replace(precision="fp32")  # as exported; bf16 would exceed the tolerance
    _require_installed(chosen)
    target = expand_user(directory)
    require_writable(target)
    _require_own(target, chosen)
    with temporary_directory() as scratch, writing(Path(scratch)):
        # Examples and windows go with the scratch: what they are read from has been cached where the caller wants it.
        examples = None if data is None else load_examples(data, cache_dir=scratch)
        windows = None if examples is None else reader.cut(examples, cache_dir=scratch)
        if examples is not None and len(examples) < _FEW_QUESTIONS and chosen.int8 != "none":
            logger.warning(
                "F1 in int8 is measured on %d questions, where a few tenths of a point are chance; give %d or more in "
                "data",
                *(len(examples), _FEW_QUESTIONS),
            )
        inputs = None
        if calibration is not None:
            calibrated_on = load_examples(calibration, cache_dir=scratch)
            if examples is not None:
                _require_other_questions(calibrated_on, examples)
            inputs = list(calibration_inputs(reader.cut(calibrated_on, cache_dir=scratch)))
        exported = _export(reader, Path(scratch), chosen, inputs)
        tried: list[promise.Tried] = []
        known: dict[str, Any] = {}
        if chosen.int8 == "auto":
            assert windows is not None and inputs is not None  # noqa: PT018
            search = promise.PromiseSearch(reader, windows, inputs, chosen.max_f1_drop, Path(scratch))
            tried = _keep_promises(search, Path(scratch), exported)
            known = search.metrics
            bits = {one.backend: one.weight_bits for one in tried if one.kept}
        else:
            bits = {backend: _weight_bits(chosen, backend) for backend in exported}
        folders = list(dict.fromkeys(Path(FILES[backend][0]).parent for backend in exported))
        packages = [package for folder in folders for package in _PACKAGES[str(folder)]]
        record: dict[str, Any] = {
            "settings": vars(chosen),
            "versions": versions(*packages),
            "backends": _compare(reader, exported, windows, known),
            "processor": processor_record(torch.device("cpu")),
        }
        for backend, number in bits.items():
            if number is not None:
                record["backends"][backend]["weight_bits"] = number
        if examples is not None:
            record["questions"] = len(examples)
        if tried:
            record["tried"] = [vars(one) for one in tried]
        if holds_reader(target, reader):
            remove_exported(target, [str(folder) for folder in folders])
        else:
            reader.save(target)
        record["weights"] = weight_hashes(target)
        for folder in folders:
            write_json(target / folder / EXPORT_RECORD, record)  # first: marks the other files as exports
        for file in reversed([file for backend in exported for file in FILES[backend]]):
            write_atomically(target / file, partial(shutil.copyfile, Path(scratch) / file))
    return record


def holds_reader(directory: Path, reader: Reader) -> bool:
    """Whether the reader in a directory is this one, its tokenizer too, so that what was exported there is of it."""
    if not directory.is_dir():
        return False
    try:
        there = Reader.load(directory, window_settings=reader.window_settings, device="cpu", precision="fp32")
    except DistilError:
        return False
    same = tokenizer_fingerprint(there.tokenizer) == tokenizer_fingerprint(reader.tokenizer)
    return same and model_fingerprint(there.model) == model_fingerprint(reader.model)


def calibration_inputs(windows: Windows) -> Iterator[dict[str, torch.Tensor]]:
    """At most 256 windows, spread evenly over the data, each as the inputs of a batch of its own."""
    chosen = np.linspace(0, len(windows) - 1, min(len(windows), _CALIBRATION_WINDOWS)).astype(int)
    for window in chosen:
        yield model_inputs(windows.collate(windows[int(window)]))


def _require_own(directory: Path, settings: ExportSettings) -> None:
    """Check that only exports of this package would be replaced, and not what a hub model came with.

    Raises:
        DistilError: There is another's.
    """
    for file in (directory / name for backend in settings.backends for name in FILES[backend]):
        if file.exists() and not (file.parent / EXPORT_RECORD).exists():
            raise DistilError(
                f"{file} would be replaced, and was not exported by this package: move it away, or export into another "
                "directory"
            )


def _require_installed(settings: ExportSettings) -> None:
    for backend in settings.backends:
        if runtime_of(backend) == "openvino":
            import_onnx("onnx", extra="openvino")  # what the model is traced to
            import_openvino("nncf" if backend in INT8_BACKENDS else "openvino")
        else:
            for module in _PACKAGES["onnx"]:
                import_onnx(module)


def _export(
    reader: Reader, scratch: Path, settings: ExportSettings, calibration: list[dict[str, torch.Tensor]] | None
) -> dict[str, Path]:
    """The file of each backend, written below a directory; without int8 where it has to be searched for."""
    found = [name for name in settings.backends if settings.int8 != "auto" or name not in INT8_BACKENDS]
    files = {backend: scratch / FILES[backend][0] for backend in found}
    for file in files.values():
        file.parent.mkdir(exist_ok=True)
    traced = scratch / "traced.onnx"
    onnx.trace(reader, _inputs(reader, _PROBES[:2]), traced)
    if "onnx" in files:
        onnx.optimise(reader, traced, files["onnx"])
    if "openvino" in files:
        openvino.convert(traced, files["openvino"])
    if "onnx-int8" in files:
        onnx.quantise(
            files["onnx"],
            files["onnx-int8"],
            per_channel=settings.per_channel,
            reduce_range=settings.reduce_range,
            calibration=calibration,
        )
    if "openvino-int8" in files:
        openvino.quantise(files["openvino"], files["openvino-int8"], _openvino_recipe(settings), calibration)
    return files


def _openvino_recipe(settings: ExportSettings) -> openvino.Quantisation:
    if settings.int8 == "dynamic":
        return openvino.Quantisation("dynamic")
    return openvino.Quantisation("static", reduce_range=settings.reduce_range)


def _weight_bits(settings: ExportSettings, backend: str) -> int | None:
    """The bits of an exported model's weights that `promise.Tried` has, where the settings alone decide."""
    if backend not in INT8_BACKENDS:
        return None
    if runtime_of(backend) == "openvino":
        return _openvino_recipe(settings).weight_bits
    return 7 if settings.reduce_range else 8


def _require_other_questions(calibration: datasets.Dataset, data: datasets.Dataset) -> None:
    """Check that activations are not scaled on what F1 is measured on.

    Raises:
        DistilError: They share questions.
    """

    def questions(examples: datasets.Dataset) -> set[bytes]:
        return {
            hashlib.blake2b(json.dumps(pair).encode(), digest_size=16).digest()
            for batch in examples.select_columns(["question", "context"]).iter(1000)
            for pair in zip(batch["question"], batch["context"], strict=True)
        }

    shared = len(questions(calibration) & questions(data))
    if shared:
        raise DistilError(
            f"{shared} questions of the calibration data are among those that are measured on, where F1 would look "
            "better than it is; calibrate on training data"
        )


def _keep_promises(search: promise.PromiseSearch, scratch: Path, exported: dict[str, Path]) -> list[promise.Tried]:
    """Add to the exported files the fastest int8 model of each runtime that is within the limit, if there is one."""
    tried = []
    for backend, find in (("onnx", search.for_onnx), ("openvino", search.for_openvino)):
        if backend not in exported:
            continue
        file, found = find(exported[backend])
        tried += found
        if file is None:
            lost = [
                (one.f1_drop, one.name) for one in found if one.f1_drop is not None and one.backend in INT8_BACKENDS
            ]
            if not lost:
                logger.warning("no int8 model for %s could be made and run, so none is written", _NAMES[backend])
                continue
            logger.warning(
                "no int8 model for %s is within %g points of F1 (the best, %s, lost %.2f), so none is written; allow "
                "more with max_f1_drop, or train for it (adaptation quantisation_aware)",
                *(_NAMES[backend], search.max_f1_drop, min(lost)[1], min(lost)[0]),
            )
            continue
        target = f"{backend}-int8"
        for name in FILES[target]:
            shutil.copyfile(file.with_suffix(Path(name).suffix), scratch / name)
        exported[target] = scratch / FILES[target][0]
    return tried


def _compare(
    reader: Reader, exported: dict[str, Path], measured: Windows | None, known: dict[str, Any]
) -> dict[str, Any]:
    """Compare the logits of each exported model with those of the reader, and evaluate all of them on the windows.

    Args:
        reader: The reader.
        exported: The file of each backend.
        measured: Windows of labelled examples, or None.
        known: Metrics that have been measured already, by backend.

    Raises:
        DistilError: The logits of the fp32 model differ by more than the tolerance.
    """
    windows: AnyWindows = reader.cut_pairs(_PROBES) if measured is None else measured
    selection = range(len(windows))[:_COMPARED_WINDOWS]
    expected = dict(_logits(reader, windows, selection))
    compared: dict[str, Any] = {"torch": {}}
    served = {"torch": reader}
    for backend, file in exported.items():
        # In fp32 first, whatever it is served in: in bf16 no difference would be that small.
        precision = "auto" if backend in INT8_BACKENDS else "fp32"
        try:
            served[backend] = _with_exported(reader, file, backend, precision)
        except DistilError as error:
            reason = (str(error.__cause__ or error).strip().splitlines() or [""])[-1].strip()
            raise DistilError(
                f"{_NAMES[runtime_of(backend)]} cannot run {type(reader.model).__name__} ({reason}), so it is not "
                "written: export it for another runtime, or use backend='torch'"
            ) from error
        largest, same = 0.0, []
        for window, (starts, ends) in _run(served[backend], backend, windows, selection):
            other_starts, other_ends = expected[window]
            largest = max(largest, float((starts - other_starts).abs().max()), float((ends - other_ends).abs().max()))
            same.append(bool(starts.argmax() == other_starts.argmax() and ends.argmax() == other_ends.argmax()))
        if backend not in INT8_BACKENDS and not largest <= _TOLERANCE:
            raise DistilError(
                f"the logits of {type(reader.model).__name__} and of its export for {_NAMES[runtime_of(backend)]} "
                f"differ by up to {largest:.3g}, so "
                "it is not written: use backend='torch', or other versions of torch and transformers"
            )
        compared[backend] = {
            "megabytes": sum(file.parent.joinpath(Path(name).name).stat().st_size for name in FILES[backend]) / 1e6,
            "largest_difference": largest,
            "same_answer": sum(same) / len(same),
        }
    if measured is not None:
        for backend in compared:
            # As it is served unless something else is asked for.
            one = _with_exported(reader, exported[backend], backend) if backend == "openvino" else served[backend]
            compared[backend]["metrics"] = known.get(backend) or one.evaluate_windows(measured)
            if runtime_of(backend) == "openvino":
                compared[backend]["precision"] = one.precision
    return compared


def _run(
    reader: Reader, backend: str, windows: AnyWindows, selection: range
) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    """`_logits` of an exported model.

    Raises:
        DistilError: The runtime cannot run it: it works for some lengths only, or not in int8.
    """
    try:
        yield from _logits(reader, windows, selection)
    except Exception as error:  # the errors of the runtimes have no common class
        reason = " ".join(str(error).split())[:200]
        model_class, runtime = type(reader.model).__name__, _NAMES[runtime_of(backend)]
        if backend in INT8_BACKENDS:
            raise DistilError(
                f"{runtime} cannot run {model_class} in int8 ({reason}): export it with int8='none'"
            ) from error
        raise DistilError(
            f"the export of {model_class} for {runtime} runs only at the length that it was traced with, so it is not "
            f"written ({reason}): use this model with backend='torch'"
        ) from error


def _logits(
    reader: Reader, windows: AnyWindows, selection: range
) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    """The index of each window with its start and end logits, without padding."""
    for batch, starts, ends in reader.logits(windows, selection):
        for row, window in enumerate(batch["window"].tolist()):
            length = int(windows.lengths[window])
            yield window, (starts[row, :length], ends[row, :length])


def _with_exported(reader: Reader, file: Path, backend: str, precision: str = "auto") -> Reader:
    """A copy of a reader that runs an exported model."""
    exported = open_exported(file, backend, precision=precision, model_type=reader.model.config.model_type)
    return reader.replace(exported=exported, device="cpu", precision="auto")


def _inputs(reader: Reader, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    windows = reader.cut_pairs(pairs)
    return model_inputs(windows.collate(windows.__getitems__(range(len(windows)))))
