"""int8 with a promise: several ways to quantise a reader are tried, and the fastest that keeps its F1 is taken."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from haystack_distill.data.windows import Windows
from haystack_distill.export import onnx, openvino
from haystack_distill.export.openvino import Quantisation
from haystack_distill.models.backends.exported import open_exported
from haystack_distill.models.reader import Reader
from haystack_distill.utils.devices import resolve_precision
from haystack_distill.utils.files import system_reason
from haystack_distill.utils.processor import adds_in_32_bits

logger = logging.getLogger(__name__)

_SMOOTH_QUANT = 0.5
_TIMED_WINDOWS = 128
_ROUNDS = 3
_HARM_WINDOWS = 64  # of the calibration data, to measure what int8 costs each layer
_LAYER = re.compile(r"\.(\d+)/")  # in the names of nodes, such as /bert/encoder/layer.3/output/dense/MatMul


@dataclass(frozen=True)
class Tried:
    """A way to quantise a reader, and what came of it; or the reader in float, to compare with.

    Attributes:
        backend: "onnx-int8" or "openvino-int8"; "onnx" or "openvino" in float.
        name: What was done, such as "static, SmoothQuant 0.5"; in float, "fp32" or "bf16".
        exact: Exact match on the data, in percent; None, as F1, if the model could not be made or run.
        f1: F1 on the data, in percent.
        f1_drop: What it lost against the reader in fp32; negative if it gained.
        windows_per_second: On this machine; None if it lost too much to be timed.
        kept: Whether it was exported.
        error: Why it could not be made or run, or None.
        weight_bits: Bits of the weights that a processor without VNNI multiplies by activations of 8 bits: with 8 its
            sums overflow. None where it does not multiply such numbers.
    """

    backend: str
    name: str
    exact: float | None = None
    f1: float | None = None
    f1_drop: float | None = None
    windows_per_second: float | None = None
    kept: bool = False
    error: str | None = None
    weight_bits: int | None = None


@dataclass(frozen=True)
class _Candidate:
    backend: str
    name: str
    file: Path
    weight_bits: int | None = None


_Measured = tuple[_Candidate, Tried]


class PromiseSearch:
    """The search for the fastest int8 model that loses at most so much F1.

    Args:
        reader: The reader in fp32, in PyTorch.
        windows: Its windows of the questions that F1 is measured on.
        calibration: Inputs to scale activations on, one window each; of other questions.
        max_f1_drop: How much F1 may be lost, in points of a hundred.
        directory: An existing directory for the models that are tried.

    Attributes:
        metrics: Those of the reader itself, of backend "torch", and of the models that were chosen.
    """

    def __init__(
        self,
        reader: Reader,
        windows: Windows,
        calibration: list[dict[str, torch.Tensor]],
        max_f1_drop: float,
        directory: Path,
    ) -> None:
        self.reader = reader
        self.windows = windows
        self.calibration = calibration
        self.max_f1_drop = max_f1_drop
        self.directory = directory
        self.metrics = {"torch": reader.evaluate_windows(windows)}
        self._metrics_of: dict[_Candidate, dict[str, float]] = {}
        self._numbered = 0

    def for_onnx(self, source: Path) -> tuple[Path | None, list[Tried]]:
        """Try ONNX Runtime's dynamic and static quantisation.

        Args:
            source: The optimised graph in fp32, as `export.onnx.optimise` writes it.

        Returns:
            The file of the fastest model within the limit, or None; and everything that was tried, the model in float
            first.
        """
        eight = adds_in_32_bits()
        measured = []
        for recipe, calibration in (("dynamic", None), ("static", self.calibration)):
            for bits in (7, 8) if eight else (7,):
                candidate = self._candidate("onnx-int8", recipe, ".onnx", bits)
                quantise = partial(onnx.quantise, source, per_channel=True, calibration=calibration)
                measured.append(self._try(candidate, partial(quantise, reduce_range=bits == 7)))
        return self._fastest(measured, _Candidate("onnx", "fp32", source))

    def for_openvino(self, source: Path) -> tuple[Path | None, list[Tried]]:
        """Try OpenVINO's dynamic quantisation and NNCF's static one, with SmoothQuant and without.

        If no static one is within the limit, the better of them is tried with the most harmful layers left in float:
        those in which int8 alone moves the logits of the calibration inputs most. Their weights have 8 bits where this
        processor adds products of int8 numbers in 32 bits, else 7.

        Args:
            source: The model in fp32, as `export.openvino.convert` writes it.

        Returns:
            As `for_onnx`.
        """
        plain = Quantisation("static", reduce_range=not adds_in_32_bits())
        static = [plain, replace(plain, smooth_quant=_SMOOTH_QUANT)]
        measured = [self._quantised(source, one) for one in (Quantisation("dynamic"), *static)]
        run = [(tried.f1, one) for one, (_, tried) in zip(static, measured[1:], strict=True) if tried.f1 is not None]
        if run and not any(self._within(tried) for _, tried in measured[1:]):
            better = max(run, key=lambda pair: pair[0])[1]
            layers = _layers(openvino.node_names(source))
            ranked = self._by_harm(source, better, layers)
            for number in range(1, len(layers) // 2 + 1):
                left = tuple(re.escape(node) for layer in ranked[:number] for node in layers[layer])
                addition = f", {number} of {len(layers)} layers in float"
                measured.append(self._quantised(source, replace(better, ignored=left), addition))
                if self._within(measured[-1][1]):
                    break
        precision = resolve_precision("auto", torch.device("cpu"), self.reader.model.config.model_type)
        return self._fastest(measured, _Candidate("openvino", precision, source))

    def _quantised(self, source: Path, quantisation: Quantisation, addition: str = "") -> _Measured:
        if quantisation.smooth_quant is not None:
            addition = f", SmoothQuant {quantisation.smooth_quant}{addition}"
        candidate = self._candidate("openvino-int8", quantisation.recipe, ".xml", quantisation.weight_bits, addition)
        calibration = self.calibration if quantisation.recipe == "static" else None
        return self._try(candidate, lambda file: openvino.quantise(source, file, quantisation, calibration))

    def _try(self, candidate: _Candidate, write: Callable[[Path], object]) -> _Measured:
        """Write a candidate and measure its F1; one that fails leaves the others to be tried."""
        try:
            write(candidate.file)
            return self._measure(candidate)
        except Exception as error:  # the errors of the runtimes have no common class
            failure = _failure(candidate, error)
            return candidate, Tried(candidate.backend, candidate.name, error=failure, weight_bits=candidate.weight_bits)

    def _candidate(
        self, backend: str, name: str, suffix: str, weight_bits: int | None = None, addition: str = ""
    ) -> _Candidate:
        self._numbered += 1
        bits = "" if weight_bits is None else f", weights of {weight_bits} bits"
        file = self.directory / f"tried_{self._numbered}{suffix}"
        return _Candidate(backend, f"{name}{bits}{addition}", file, weight_bits)

    def _measure(self, candidate: _Candidate) -> _Measured:
        """The F1 of a candidate that has been written."""
        metrics = self._served(candidate).evaluate_windows(self.windows)
        self._metrics_of[candidate] = metrics
        drop = self.metrics["torch"]["f1"] - metrics["f1"]
        logger.info("%s, %s: F1 %.2f, %.2f lost", candidate.backend, candidate.name, metrics["f1"], drop)
        exact, f1, bits = metrics["exact"], metrics["f1"], candidate.weight_bits
        return candidate, Tried(candidate.backend, candidate.name, exact, f1, drop, weight_bits=bits)

    def _within(self, tried: Tried) -> bool:
        return tried.f1_drop is not None and tried.f1_drop <= self.max_f1_drop

    def _fastest(self, measured: list[_Measured], in_float: _Candidate) -> tuple[Path | None, list[Tried]]:
        """Time those within the limit and the model in float, in turn, and choose the fastest of the former."""
        _, unquantised = self._measure(in_float)
        unquantised = replace(unquantised, kept=True)
        self.metrics[in_float.backend] = self._metrics_of[in_float]
        eligible = [candidate for candidate, tried in measured if self._within(tried)]
        if not eligible:
            return None, [unquantised, *(tried for _, tried in measured)]
        timed = [in_float, *eligible]
        served = [self._served(candidate) for candidate in timed]
        count = min(len(self.windows), _TIMED_WINDOWS)
        selection = np.linspace(0, len(self.windows) - 1, count).astype(int).tolist()
        seconds = [float("inf")] * len(served)
        for _ in range(_ROUNDS):
            for number, reader in enumerate(served):
                start = time.perf_counter()
                for _ in reader.logits(self.windows, selection):
                    pass
                seconds[number] = min(seconds[number], time.perf_counter() - start)
        rates = {candidate: count / taken for candidate, taken in zip(timed, seconds, strict=True)}
        fastest = max(eligible, key=lambda candidate: rates[candidate])
        self.metrics[fastest.backend] = self._metrics_of[fastest]
        if rates[fastest] < rates[in_float]:
            logger.warning(
                "%s (%s, %.1f windows/s) is smaller than %s in %s, but slower (%.1f windows/s) on this machine",
                *(fastest.backend, fastest.name, rates[fastest]),
                *(in_float.backend, in_float.name, rates[in_float]),
            )
        found = [
            replace(tried, windows_per_second=rates.get(candidate), kept=candidate == fastest)
            for candidate, tried in measured
        ]
        return fastest.file, [replace(unquantised, windows_per_second=rates[in_float]), *found]

    def _served(self, candidate: _Candidate, precision: str = "auto") -> Reader:
        model_type = self.reader.model.config.model_type
        exported = open_exported(candidate.file, candidate.backend, precision=precision, model_type=model_type)
        return self.reader.replace(exported=exported, device="cpu", precision="auto")

    def _by_harm(self, source: Path, quantisation: Quantisation, layers: dict[str, list[str]]) -> list[str]:
        """The layers, those first that do the most harm in int8 while all others stay in float.

        One that cannot be made or run in int8 comes before all that can.
        """
        inputs = self.calibration[:: max(1, len(self.calibration) // _HARM_WINDOWS)][:_HARM_WINDOWS]
        expected = [torch.stack(self.reader.forward(one)) for one in inputs]
        harm = {}
        everything = openvino.node_names(source)
        for layer, own in layers.items():
            others = tuple(re.escape(name) for name in everything if name not in own)
            candidate = self._candidate("openvino-int8", layer, ".xml")
            try:
                openvino.quantise(source, candidate.file, replace(quantisation, ignored=others), inputs)
                served = self._served(candidate, "fp32")
                found = [torch.stack(served.forward(one)) for one in inputs]
            except Exception as error:  # the errors of the runtimes have no common class
                _failure(candidate, error)
                harm[layer] = float("inf")
                continue
            harm[layer] = sum(float((a - b).square().mean()) for a, b in zip(found, expected, strict=True))
        return sorted(layers, key=lambda layer: -harm[layer])


def _failure(candidate: _Candidate, error: Exception) -> str:
    """Why a candidate cannot be made or run, logged too; a full disk is no fault of the candidate, and is raised."""
    if isinstance(error, OSError) or system_reason(error) is not None:
        raise error
    reason = " ".join(str(error).split())[:300]
    logger.warning("%s, %s cannot be made or run (%s)", candidate.backend, candidate.name, reason)
    return reason


def _layers(names: Sequence[str]) -> dict[str, list[str]]:
    """The nodes of each layer by its number; empty if the names do not hold numbers."""
    found: dict[str, list[str]] = {}
    for name in names:
        number = _LAYER.search(name)
        if number is not None:
            found.setdefault(number.group(1), []).append(name)
    return found
