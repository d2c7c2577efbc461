"""int8 with a promise: what is tried, what is kept, and the warning where nothing keeps it."""

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertTokenizerFast, MPNetConfig

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.data.squad.load import load_examples
from haystack_distill.export import promise
from haystack_distill.export.exporting import ExportSettings, calibration_inputs, export_reader
from haystack_distill.models.backends.exported import FILES, overflows_here
from haystack_distill.reporting.int8 import COLUMNS, exported_int8, int8_rows, int8_section
from haystack_distill.utils.processor import adds_in_32_bits
from tests.conftest import CONTEXTS, make_tiny_reader
from tests.export.test_exporting import SMALL, reader_of

pytest.importorskip("openvino")

MakeReader = Callable[..., Reader]
BITS = 8 if adds_in_32_bits() else 7  # of OpenVINO's static int8 on this machine
WINDOWS = WindowSettings(max_seq_len=48, doc_stride=16, max_query_length=16)
OTHERS = [("Who came from Delft?", CONTEXTS[1]), ("What moves?", CONTEXTS[3]), ("When was it?", CONTEXTS[0])]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions that are not those of `squad_file`."""
    paragraphs = [
        {"context": context, "qas": [{"id": str(number), "question": question, "labelled": False}]}
        for number, (question, context) in enumerate(OTHERS)
    ]
    path = tmp_path_factory.mktemp("calibration") / "train.json"
    path.write_text(json.dumps({"version": "1", "data": [{"title": "t", "paragraphs": paragraphs}]}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reader(tokenizer: BertTokenizerFast) -> Reader:
    return make_tiny_reader(tokenizer, seed=5, initializer_range=0.3, num_hidden_layers=2)


@pytest.mark.slow
def test_the_fastest_within_the_limit_is_kept(
    reader: Reader, squad_file: Path, calibration: Path, tmp_path: Path
) -> None:
    settings = ExportSettings(int8="auto", runtime="all", max_f1_drop=100.0)
    record = export_reader(reader, tmp_path / "reader", settings, calibration=calibration, data=squad_file)
    written = json.loads((tmp_path / "reader" / "openvino" / "export.json").read_text())
    assert written == json.loads(json.dumps(record))
    assert written["settings"]["max_f1_drop"] == 100.0
    tried = written["tried"]
    names = [one["name"] for one in tried if one["backend"] == "openvino-int8"]
    static = f"static, weights of {BITS} bits"
    assert names == ["dynamic", static, f"{static}, SmoothQuant 0.5"]
    assert {one["name"] for one in tried if one["backend"] == "onnx-int8"} >= {
        "dynamic, weights of 7 bits",
        "static, weights of 7 bits",
    }
    f1 = written["backends"]["torch"]["metrics"]["f1"]
    for backend in ("onnx-int8", "openvino-int8"):
        assert all((tmp_path / "reader" / file).exists() for file in FILES[backend])
        own = [one for one in tried if one["backend"] == backend]
        kept = [one for one in own if one["kept"]]
        assert len(kept) == 1
        assert kept[0]["windows_per_second"] == max(one["windows_per_second"] for one in own)
        assert written["backends"][backend]["metrics"]["f1"] == pytest.approx(kept[0]["f1"])
        assert written["backends"][backend].get("weight_bits") == kept[0]["weight_bits"]
        assert not overflows_here(written, backend)
        served = Reader.load(tmp_path / "reader", backend=backend, window_settings=WINDOWS)
        assert served.evaluate(squad_file)["f1"] == pytest.approx(kept[0]["f1"])
        for one in own:
            assert one["f1_drop"] == pytest.approx(f1 - one["f1"])
    rows = int8_rows(written)
    assert [row[-1] for row in rows].count("yes") == 4  # in float and in int8
    for backend in ("onnx", "openvino"):
        (in_float,) = (one for one in tried if one["backend"] == backend)
        auto = Reader.load(tmp_path / "reader", backend=backend, window_settings=WINDOWS)
        assert in_float["name"] == auto.precision
        assert in_float["f1"] == pytest.approx(auto.evaluate(squad_file)["f1"])
        assert in_float["windows_per_second"] > 0
    assert all(len(row) == len(COLUMNS) for row in rows)
    kept = exported_int8(tmp_path / "reader")
    assert list(kept) == ["onnx", "openvino"]
    section = int8_section(kept)
    assert section.count(f"at most 100 points of F1 against fp32 on the {written['questions']} questions") == 2
    assert section.count("\n| o") == len(tried)


def worse(self: Reader, windows: object, **_: object) -> dict[str, float]:
    """An F1 that falls by a point with every model that is measured, and is best in fp32."""
    worse.calls += 1  # type: ignore[attr-defined]
    return {"exact": 50.0, "f1": 80.0 - worse.calls}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_none_within_the_limit_is_written(
    reader: Reader,
    squad_file: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worse.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Reader, "evaluate_windows", worse)
    settings = ExportSettings(int8="auto", runtime="all", max_f1_drop=0.5)
    with caplog.at_level(logging.WARNING):
        record = export_reader(reader, tmp_path / "reader", settings, calibration=calibration, data=squad_file)
    assert (
        "no int8 model for ONNX Runtime is within 0.5 points of F1 (the best, dynamic, weights of 7 bits" in caplog.text
    )
    assert "no int8 model for OpenVINO" in caplog.text
    assert not any(one["windows_per_second"] for one in record["tried"])
    assert {one["backend"] for one in record["tried"] if one["kept"]} == {"onnx", "openvino"}
    # The static one that lost least was tried once more with the more harmful of two layers in float.
    assert record["tried"][-1]["name"] == f"static, weights of {BITS} bits, 1 of 2 layers in float"
    for backend in FILES:
        assert all((tmp_path / "reader" / file).exists() != ("int8" in backend) for file in FILES[backend])


@pytest.mark.slow
def test_a_way_that_fails_leaves_the_others(
    reader: Reader,
    squad_file: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    quantise = promise.openvino.quantise

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("an operator\nis missing")

    def fails_when_smoothed(source: Path, target: Path, quantisation: promise.Quantisation, *more: object) -> None:
        if quantisation.smooth_quant is not None:
            fails()
        quantise(source, target, quantisation, *more)

    monkeypatch.setattr(promise.onnx, "quantise", fails)
    monkeypatch.setattr(promise.openvino, "quantise", fails_when_smoothed)
    settings = ExportSettings(int8="auto", runtime="all", max_f1_drop=100.0)
    with caplog.at_level(logging.WARNING):
        record = export_reader(reader, tmp_path / "reader", settings, calibration=calibration, data=squad_file)
    assert "no int8 model for ONNX Runtime could be made and run, so none is written" in caplog.text
    smooth = f"static, weights of {BITS} bits, SmoothQuant 0.5"
    assert f"openvino-int8, {smooth} cannot be made or run (an operator is missing)" in caplog.text
    failed = {one["name"] for one in record["tried"] if one["error"]}
    assert failed >= {smooth, "dynamic, weights of 7 bits", "static, weights of 7 bits"}
    assert set(record["backends"]) == {"torch", "onnx", "openvino", "openvino-int8"}
    rows = {row[1]: row for row in int8_rows(record)}
    assert rows[smooth] == ["openvino-int8", smooth, "", "", "", "", "failed"]


@pytest.mark.slow
def test_an_int8_that_is_slower_than_float_is_named(
    reader: Reader,
    squad_file: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logits = Reader.logits

    def slow(self: Reader, windows: object, selection: object) -> object:
        if self.backend == "onnx-int8":
            time.sleep(0.3)
        return logits(self, windows, selection)  # type: ignore[arg-type]

    monkeypatch.setattr(Reader, "logits", slow)
    settings = ExportSettings(int8="auto", max_f1_drop=100.0)
    with caplog.at_level(logging.WARNING):
        export_reader(reader, tmp_path / "reader", settings, calibration=calibration, data=squad_file)
    assert re.search(r"onnx-int8 \(.*\) is smaller than onnx in fp32, but slower \(.* windows/s\)", caplog.text)


def test_the_most_harmful_layer_is_found(
    reader: Reader,
    squad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A layer whose values have outliers loses most in int8; one that cannot be quantised comes first."""
    from haystack_distill.export import onnx, openvino
    from haystack_distill.export.openvino import Quantisation

    damaged = reader.copy()
    dense = damaged.model.bert.encoder.layer[1].intermediate.dense
    dense.weight.data[0] *= 300.0  # one neuron far out of the range of the others
    inputs = list(calibration_inputs(damaged.cut(load_examples(squad_file))))
    onnx.trace(damaged, inputs[0], tmp_path / "traced.onnx")
    openvino.convert(tmp_path / "traced.onnx", tmp_path / "model.xml")
    windows = damaged.cut(load_examples(squad_file))
    search = promise.PromiseSearch(damaged, windows, inputs, 0.3, tmp_path)
    layers = promise._layers(openvino.node_names(tmp_path / "model.xml"))
    assert {layer: len(nodes) for layer, nodes in layers.items()} == {"0": 8, "1": 8}
    assert search._by_harm(tmp_path / "model.xml", Quantisation("static"), layers) == ["1", "0"]

    quantise = openvino.quantise

    def fails(source: Path, target: Path, quantisation: Quantisation, inputs: object) -> None:
        if re.escape(layers["0"][0]) not in quantisation.ignored:
            raise RuntimeError("a layer that cannot be quantised")
        quantise(source, target, quantisation, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(openvino, "quantise", fails)
    assert search._by_harm(tmp_path / "model.xml", Quantisation("static"), layers) == ["0", "1"]
    assert "a layer that cannot be quantised" in caplog.text


def test_layers_by_the_names_of_other_families(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    from haystack_distill.export import onnx, openvino

    other = reader_of(MPNetConfig(**SMALL, vocab_size=len(tokenizer)), tokenizer)
    windows = other.cut_pairs(OTHERS)
    from haystack_distill.utils.model_inputs import model_inputs

    onnx.trace(other, model_inputs(windows.collate(windows.__getitems__([0, 1]))), tmp_path / "traced.onnx")
    openvino.convert(tmp_path / "traced.onnx", tmp_path / "model.xml")
    layers = promise._layers(openvino.node_names(tmp_path / "model.xml"))
    assert set(layers) == {str(number) for number in range(other.model.config.num_hidden_layers)}


def test_what_does_not_fit(reader: Reader, squad_file: Path, calibration: Path, tmp_path: Path) -> None:
    auto = ExportSettings(int8="auto")
    for given, match in (
        ({"data": squad_file}, "calibration data is needed"),
        ({"calibration": calibration}, "needs labelled data to measure it on; give data"),
        ({"calibration": squad_file, "data": squad_file}, "8 questions of the calibration data are among those"),
    ):
        with pytest.raises(DistilError, match=match):
            export_reader(reader, tmp_path / "x", auto, **given)
    for wrong, match in (
        ({"int8": "auto", "reduce_range": False}, "chooses per_channel and reduce_range itself"),
        ({"max_f1_drop": 0.1}, "has an effect with int8='auto' only"),
        ({"int8": "auto", "max_f1_drop": -1}, "max_f1_drop must be a number of at least 0"),
    ):
        with pytest.raises(DistilError, match=match):
            ExportSettings(**wrong)
    assert not (tmp_path / "x").exists()
