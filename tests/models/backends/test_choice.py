"""Backend "auto": the fastest is taken and remembered, int8 only where its promise was kept."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from transformers import BertTokenizerFast

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.data.windows import PairWindows
from haystack_distill.export.exporting import ExportSettings, export_reader
from haystack_distill.models.backends import choice, exported
from haystack_distill.models.backends.choice import keeps_promise
from haystack_distill.models.embedded_teacher import named_reader
from haystack_distill.utils.cache import CACHE_VARIABLE
from tests.conftest import CONTEXTS, QUESTIONS, make_tiny_reader

WINDOWS = WindowSettings(max_seq_len=48, doc_stride=16, max_query_length=16)


@pytest.fixture(scope="module")
def directory(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reader, exported in fp32 and int8."""
    reader = make_tiny_reader(tokenizer, seed=5, initializer_range=0.3, num_hidden_layers=1)
    place = tmp_path_factory.mktemp("exported") / "reader"
    export_reader(reader, place, ExportSettings(runtime="all" if len(choice.installed_runtimes()) > 1 else "onnx"))
    return place


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    return tmp_path / "cache" / "backends"


def load(directory: Path, **settings: Any) -> Reader:
    return Reader.load(directory, backend="auto", window_settings=WINDOWS, **settings)


def timed(monkeypatch: pytest.MonkeyPatch, **milliseconds: float) -> list[list[str]]:
    """Take these times for measured, and list what would have been measured."""
    calls: list[list[str]] = []

    def measure(readers: dict[str, Reader], windows: PairWindows) -> dict[str, float]:
        calls.append(list(readers))
        return {name: milliseconds.get(name.replace("-", "_"), 10.0) for name in readers}

    monkeypatch.setattr(choice, "_measure", measure)
    return calls


def test_something_is_chosen_and_answers(
    directory: Path, empty_cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_ROUNDS", 3)
    served = load(directory, passages=3)
    assert "backend 'auto' is " + repr(served.backend) in caplog.text
    (kept,) = (json.loads(file.read_text()) for file in empty_cache.iterdir())
    assert kept["backend"] == served.backend
    assert {"torch", "onnx"} <= kept["milliseconds"].keys()
    assert not {"onnx-int8", "openvino-int8"} & kept["milliseconds"].keys()  # nothing was measured on data
    expected = Reader.load(directory, window_settings=WINDOWS, device="cpu")
    question, place, _ = QUESTIONS[0]
    assert served.answer(question, CONTEXTS[place])[0].text == expected.answer(question, CONTEXTS[place])[0].text


def test_one_slow_pass_is_no_slow_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast one is held up in its first round; what stays far behind is timed in two rounds alone."""
    now = 0.0
    taken = {"fast": [0.03, *[0.004] * 60], "slow": [0.01] * 61}
    passes: list[str] = []

    def run(reader: str, windows: object) -> None:
        nonlocal now
        passes.append(reader)
        now += taken[reader][passes.count(reader) - 1]

    monkeypatch.setattr(choice, "_run", run)
    monkeypatch.setattr(choice, "time", SimpleNamespace(perf_counter=lambda: now))
    best = choice._measure({"a": "fast", "b": "slow"}, None)  # type: ignore[dict-item, arg-type]
    assert best == {"a": pytest.approx(4.0), "b": pytest.approx(10.0)}
    assert (passes.count("fast"), passes.count("slow")) == (60, 2)


def test_the_fastest_is_taken_and_remembered(
    directory: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    calls = timed(monkeypatch, onnx=1.0)
    assert [load(directory).backend for _ in range(3)] == ["onnx"] * 3
    assert len(calls) == 1
    load(directory, num_threads=1)
    load(directory, passages=1)
    load(directory, precision="fp32")
    assert len(calls) == 4
    for file in empty_cache.iterdir():
        file.write_text("{")
    assert load(directory).backend == "onnx"
    assert len(calls) == 5
    monkeypatch.setattr(choice, "_version", lambda package: "another")
    timed(monkeypatch, torch=1.0)
    served = load(directory)
    assert (served.backend, served.exported) == ("torch", None)


def test_int8_is_taken_only_where_it_kept_its_promise(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, onnx_int8=1.0, torch=2.0)
    place = tmp_path / "reader"
    export_reader(tiny_reader(num_hidden_layers=1, initializer_range=0.3), place, data=squad_file)
    record = json.loads((place / "onnx" / "export.json").read_text())
    for drop, chosen in ((0.2, "onnx-int8"), (0.4, "torch")):
        record["backends"]["onnx-int8"]["metrics"]["f1"] = record["backends"]["torch"]["metrics"]["f1"] - drop
        (place / "onnx" / "export.json").write_text(json.dumps(record))
        assert load(place).backend == chosen
    for limit in (0.5, 0.1):
        assert keeps_promise(record | {"settings": {"max_f1_drop": limit}}, "onnx-int8") == (limit == 0.5)
    assert not keeps_promise({"backends": {"onnx-int8": {}}}, "onnx-int8")


def test_int8_that_would_overflow_is_not_taken(
    tiny_reader: Callable[..., Reader],
    squad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Measured where products are added in 32 bits, loaded where they are not."""
    timed(monkeypatch, onnx_int8=1.0, torch=2.0)
    place = tmp_path / "reader"
    export_reader(
        tiny_reader(num_hidden_layers=1, initializer_range=0.3),
        place,
        ExportSettings(reduce_range=False),
        data=squad_file,
    )
    file = place / "onnx" / "export.json"
    record = json.loads(file.read_text())
    assert record["backends"]["onnx-int8"]["weight_bits"] == 8
    assert {"cpu", "instructions"} <= record["processor"].keys()
    record["backends"]["onnx-int8"]["metrics"] = record["backends"]["torch"]["metrics"]
    file.write_text(json.dumps(record))
    for here, chosen in ((True, "onnx-int8"), (False, "torch")):
        monkeypatch.setattr(exported, "adds_in_32_bits", lambda here=here: here)
        caplog.clear()
        assert load(place).backend == chosen
        assert ("weights of 8 bits would overflow on this processor" in caplog.text) != here
        caplog.clear()
        Reader.load(place, backend="onnx-int8", window_settings=WINDOWS)
        assert ("onnx/model_int8.onnx has weights of 8 bits, whose sums overflow" in caplog.text) != here


@pytest.mark.parametrize(
    ("backend", "settings", "tried", "expected"),
    [
        ("onnx-int8", {"int8": "dynamic", "reduce_range": True}, [], False),
        ("onnx-int8", {"int8": "dynamic", "reduce_range": False}, [], True),
        ("onnx-int8", {"int8": "auto"}, ["static, weights of 8 bits"], True),
        ("onnx-int8", {"int8": "auto"}, ["static, weights of 7 bits"], False),
        ("openvino-int8", {"int8": "dynamic"}, [], False),
        ("openvino-int8", {"int8": "static"}, [], True),
        ("openvino-int8", {"int8": "auto"}, ["static, SmoothQuant 0.5"], True),
        ("openvino", {"int8": "static"}, [], False),
    ],
)
def test_what_earlier_records_hold_of_the_weights(
    backend: str, settings: dict[str, Any], tried: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "adds_in_32_bits", lambda: False)
    record = {
        "backends": {backend: {}},
        "settings": settings,
        "tried": [{"backend": backend, "name": name, "kept": True} for name in tried],
    }
    assert exported.overflows_here(record, backend) is expected


def test_without_exports_it_is_torch(
    tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    calls = timed(monkeypatch)
    place = tiny_reader(num_hidden_layers=1).save(tmp_path / "reader")
    assert load(place).backend == "torch"
    assert named_reader(str(place), backend="auto", passages=2, window_settings=WINDOWS).backend == "torch"
    assert not calls
    assert not empty_cache.exists()


def test_a_cache_that_cannot_be_written_does_no_harm(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, empty_cache: Path
) -> None:
    timed(monkeypatch, onnx=1.0)
    empty_cache.parent.write_text("a file")
    assert load(directory).backend == "onnx"
    assert "cannot be kept, and is measured again next time" in caplog.text


def test_a_broken_export_is_left_out(
    tiny_reader: Callable[..., Reader],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = timed(monkeypatch)
    place = tmp_path / "reader"
    export_reader(tiny_reader(num_hidden_layers=1), place, ExportSettings(int8="none"))
    (place / "onnx" / "model.onnx").write_bytes(b"no model")
    assert load(place).backend == "torch"
    assert calls == [["torch"]]
    assert "does without 'onnx'" in caplog.text


def test_an_export_that_opens_and_cannot_run_is_left_out(
    tiny_reader: Callable[..., Reader],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    empty_cache: Path,
) -> None:
    monkeypatch.setattr(choice, "_ROUNDS", 2)
    place = tmp_path / "reader"
    export_reader(tiny_reader(num_hidden_layers=1), place, ExportSettings(int8="none"))
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [7, 1000])
    inputs = [
        value(name, onnx.TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    names = ("start_logits", "end_logits")
    outputs = [value(name, onnx.TensorProto.FLOAT, ["batch", "length"]) for name in names]
    nodes = [node("Cast", ["input_ids"], ["numbers"], to=onnx.TensorProto.FLOAT)]
    nodes += [node("Reshape", ["numbers", "shape"], [name]) for name in names]
    graph = onnx.helper.make_graph(nodes, "broken", inputs, outputs, [shape])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), place / "onnx" / "model.onnx")
    assert load(place).backend == "torch"
    assert "does without 'onnx'" in caplog.text
    assert "Reshape" in caplog.text
    assert not empty_cache.exists()  # another time it may run


def test_a_choice_without_all_candidates_is_not_kept(
    tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed(monkeypatch, onnx=1.0)
    place = tmp_path / "reader"
    export_reader(tiny_reader(num_hidden_layers=1), place, ExportSettings(int8="none"))
    content = (place / "onnx" / "model.onnx").read_bytes()
    (place / "onnx" / "model.onnx").write_bytes(bytes(len(content)))  # of the same size
    assert load(place).backend == "torch"
    (place / "onnx" / "model.onnx").write_bytes(content)
    assert load(place).backend == "onnx"
    assert calls == [["torch"], ["torch", "onnx"]]


def test_what_was_exported_from_other_weights_is_no_candidate(
    tiny_reader: Callable[..., Reader],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    timed(monkeypatch, onnx=1.0)
    place = tmp_path / "reader"
    export_reader(tiny_reader(num_hidden_layers=1), place, ExportSettings(int8="none"))
    tiny_reader(num_hidden_layers=1, seed=9).model.save_pretrained(place)
    assert load(place).backend == "torch"
    assert "are no longer those that" in caplog.text


def test_what_cannot_compute_in_bf16_is_no_candidate_there(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = timed(monkeypatch, onnx=1.0, onnx_int8=1.0, openvino_int8=1.0)
    place = tmp_path / "reader"
    shutil.copytree(directory, place)
    monkeypatch.setattr(choice, "keeps_promise", lambda record, backend: True)
    assert load(place, precision="bf16").backend in ("torch", "openvino")  # the latter where the processor has bf16
    assert not {"onnx", "onnx-int8", "openvino-int8"} & {backend for call in calls for backend in call}
    assert "does without 'onnx" not in caplog.text
    assert not exported.is_dynamic({"settings": {"int8": "static"}}, "openvino-int8")
    tried = [{"backend": "openvino-int8", "name": name, "kept": "static" in name} for name in ("dynamic", "static")]
    assert not exported.is_dynamic({"settings": {"int8": "auto"}, "tried": tried}, "openvino-int8")
    assert exported.is_dynamic({"settings": {"int8": "dynamic"}}, "openvino-int8")


def test_fewer_cores_are_measured_anew(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = timed(monkeypatch, onnx=1.0)
    for cores in (2, 1, 2, 1):
        monkeypatch.setattr(choice, "usable_cores", lambda cores=cores: cores)
        load(directory)
    assert len(calls) == 2


def test_refused(directory: Path) -> None:
    with pytest.raises(DistilError, match="passages has no effect with backend 'onnx'; leave it out"):
        Reader.load(directory, backend="onnx", passages=3, window_settings=WINDOWS)
    with pytest.raises(DistilError, match="passages must be a whole number of at least 1"):
        load(directory, passages=0)
