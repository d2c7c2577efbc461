"""The OpenVINO model of an exported reader, and what differs from ONNX Runtime."""

import copy
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.export.exporting import ExportSettings, export_reader
from haystack_distill.models.backends import openvino_runtime
from haystack_distill.models.backends.exported import FILES, find_exported
from haystack_distill.models.backends.openvino_runtime import OpenVinoModel, import_openvino
from haystack_distill.utils.devices import AUTO_PRECISION_VARIABLE
from haystack_distill.utils.model_inputs import model_inputs
from haystack_distill.utils.processor import usable_cores
from tests.conftest import make_tiny_reader
from tests.models.backends.test_onnx_runtime import PAIRS, WINDOWS

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def exported(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Path]:
    """A tiny reader, and where it was exported to."""
    reader = make_tiny_reader(tokenizer, seed=5, initializer_range=0.3)
    directory = tmp_path_factory.mktemp("exported") / "reader"
    export_reader(reader, directory, ExportSettings(runtime="openvino"))
    return reader, directory


def opened(directory: Path, backend: str = "openvino", **settings: object) -> OpenVinoModel:
    settings = {"num_threads": 1, "precision": "fp32"} | settings
    return OpenVinoModel(find_exported(str(directory), backend), backend, **settings)  # type: ignore[arg-type]


def knows_bf16() -> bool:
    """Whether OpenVINO can compute in bf16 on this processor."""
    return "BF16" in openvino_runtime._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def inputs_of(reader: Reader, rows: slice = slice(None)) -> dict[str, torch.Tensor]:
    """A padded batch of windows of several lengths."""
    windows = reader.cut_pairs(PAIRS)
    batch = model_inputs(windows.collate(windows.__getitems__(range(len(windows)))))
    return {name: tensor[rows] for name, tensor in batch.items()}


def test_it_gives_the_logits_of_the_model(exported: tuple[Reader, Path]) -> None:
    reader, directory = exported
    model, inputs = opened(directory), inputs_of(reader)
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    for found, expected in zip(model({"unknown": torch.zeros(1)} | inputs), reader.forward(inputs), strict=True):
        assert (found.shape, found.dtype) == (mask.shape, torch.float32)
        torch.testing.assert_close(found[mask], expected[mask], atol=1e-4, rtol=1e-4)


def test_batches_are_padded_so_that_few_shapes_occur(exported: tuple[Reader, Path]) -> None:
    reader, directory = exported
    served = Reader.load(directory, backend="openvino", precision="fp32", window_settings=WindowSettings(40, 8, 16))
    reader = reader.replace(window_settings=served.window_settings)
    windows = served.cut_pairs(PAIRS)
    everything = range(len(windows))
    expected = {
        window: starts[row, : int(windows.lengths[window])]
        for batch, starts, _ in reader.logits(windows, everything)
        for row, window in enumerate(batch["window"].tolist())
    }
    lengths = set()
    for batch, starts, _ in served.logits(windows, everything):
        lengths.add(batch["input_ids"].shape[1])
        for row, window in enumerate(batch["window"].tolist()):
            found = starts[row, : int(windows.lengths[window])]
            torch.testing.assert_close(found, expected[window], atol=1e-4, rtol=1e-4)
    assert lengths <= {16, 32, 40}  # multiples of 16, and the longest that a window can be


def test_precision_is_chosen_as_elsewhere(exported: tuple[Reader, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, directory = exported
    best = "bf16" if knows_bf16() else "fp32"
    for auto, expected in (("fp32", "fp32"), ("bf16", best)):
        monkeypatch.setenv(AUTO_PRECISION_VARIABLE, auto)
        served = Reader.load(directory, backend="openvino", window_settings=WINDOWS)
        assert (served.precision, served.backend) == (expected, "openvino")
        assert served.replace(batch_size=2).precision == expected
    if knows_bf16():
        (found, _), (exact, _) = served.forward(inputs_of(reader)), reader.forward(inputs_of(reader))
        mask = inputs_of(reader)["attention_mask"].bool()
        assert 1e-4 < (found - exact)[mask].abs().max() < 0.5
    else:
        with pytest.raises(DistilError, match="this processor cannot compute in bf16; use precision 'fp32'"):
            Reader.load(directory, backend="openvino", precision="bf16", window_settings=WINDOWS)
    assert Reader.load(directory, backend="openvino", precision="fp32", window_settings=WINDOWS).precision == "fp32"
    for refused, message in (("fp16", "fp16 is for GPUs"), ("int4", "precision must be one of")):
        with pytest.raises(DistilError, match=message):
            Reader.load(directory, backend="openvino", precision=refused, window_settings=WINDOWS)
    with pytest.raises(DistilError, match=f"runs on the processor and in {best}"):
        served.replace(precision="fp32" if knows_bf16() else "bf16")
    assert opened(directory, precision="auto", model_type="deberta").precision == "fp32"


@pytest.fixture(scope="module")
def wide(tokenizer: BertTokenizerFast) -> Reader:
    """A reader that is wide enough for activations to be scaled in groups."""
    shape = {"num_hidden_layers": 1, "hidden_size": 256, "intermediate_size": 256}
    return make_tiny_reader(tokenizer, seed=5, initializer_range=0.1, **shape)


@pytest.mark.parametrize(("int8", "precisions"), [("dynamic", ["auto"]), ("static", ["fp32", "bf16"])])
def test_int8_answers_depend_on_no_other_window(
    wide: Reader, int8: str, precisions: list[str], squad_file: Path, tmp_path: Path
) -> None:
    """Rounding apart: a scale over a whole batch would make differences as large as those that int8 makes."""
    calibration = squad_file if int8 == "static" else None
    export_reader(wide, tmp_path, ExportSettings(int8=int8, runtime="openvino"), calibration=calibration)
    inputs = inputs_of(wide)
    mask, exact = inputs["attention_mask"].bool(), wide.forward(inputs)
    for precision in precisions:
        if precision == "bf16" and not knows_bf16():
            continue
        model = opened(tmp_path, "openvino-int8", precision=precision)
        together = model(inputs)
        by_int8 = max(float((one - other)[mask].abs().max()) for one, other in zip(together, exact, strict=True))
        apart = 0.0
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            window = {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()}
            padded = {name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in window.items()}
            for given in (window, padded):
                for found, others in zip(model(given), together, strict=True):
                    apart = max(apart, float((found[0, :length] - others[row, :length]).abs().max()))
        print(int8, precision, by_int8, apart)
        assert 1e-3 < by_int8 < 1
        assert apart < by_int8 / 5
    if int8 == "dynamic":
        assert model.precision == "fp32"
        with pytest.raises(DistilError, match="computes in fp32 between its int8 weights; leave precision out"):
            opened(tmp_path, "openvino-int8", precision="bf16")


def test_callers_get_a_request_each(exported: tuple[Reader, Path]) -> None:
    _, directory = exported
    served = Reader.load(directory, backend="openvino", precision="fp32", num_threads=1, window_settings=WINDOWS)
    expected = [served.answer(*pair) for pair in PAIRS]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda pair: served.answer(*pair), PAIRS * 4)) == expected * 4
    assert isinstance(served.exported, OpenVinoModel)
    assert 1 <= len(served.exported._idle) <= 8


def test_num_threads_are_those_of_a_call(exported: tuple[Reader, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cores = usable_cores()
    monkeypatch.setattr(openvino_runtime, "usable_cores", lambda: 2)
    for num_threads, streams in ((1, 2), (2, 1)):
        compiled = opened(exported[1], num_threads=num_threads)._compiled
        # OpenVINO itself takes no more than there are.
        assert compiled.get_property("NUM_STREAMS") == min(streams, cores)
        assert compiled.get_property("INFERENCE_NUM_THREADS") == min(streams * num_threads, cores)


def test_a_container_gets_the_threads_of_its_quota(
    exported: tuple[Reader, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_runtime, "restricted_threads", lambda: 1)
    compiled = opened(exported[1], num_threads=None)._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1


def test_a_file_that_is_no_model_is_refused(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    broken = tiny_reader().save(tmp_path / "broken")
    with pytest.raises(DistilError, match=r"has no openvino/openvino_model\.xml.*export --runtime openvino"):
        Reader.load(broken, backend="openvino", window_settings=WINDOWS)
    (broken / "openvino").mkdir()
    for file in FILES["openvino"]:
        (broken / file).write_bytes(b"no model")
    with pytest.raises(DistilError, match=r"openvino_model\.xml cannot be run.*: export the reader again") as error:
        Reader.load(broken, backend="openvino", window_settings=WINDOWS)
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(DistilError, match=r"need nncf: pip install 'haystack-distill\[openvino\]'"):
        import_openvino("nncf")


def test_nothing_is_reported_to_a_web_service() -> None:
    from unittest.mock import MagicMock

    wrapper = import_openvino("nncf.telemetry.wrapper")
    assert isinstance(wrapper.telemetry, MagicMock)  # what NNCF takes where the module that reports is not installed
    assert sys.modules.get("openvino_telemetry", wrapper) is not None


def test_copies_open_the_file_again_and_a_forked_process_is_refused(
    exported: tuple[Reader, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(exported[1])
    inputs = inputs_of(exported[0])
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert one is not model
        assert (one.path, one.precision) == (model.path, "fp32")
        assert all(torch.equal(*pair) for pair in zip(one(inputs), model(inputs), strict=True))
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    with pytest.raises(DistilError, match="loaded before this process was forked"):
        model(inputs)
