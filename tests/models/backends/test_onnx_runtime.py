"""The ONNX Runtime session of an exported reader, and the files that it comes from."""

import copy
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.export.exporting import ExportSettings, export_reader
from haystack_distill.models.backends import onnx_runtime
from haystack_distill.models.backends.exported import FILES, check_backend, find_exported
from haystack_distill.models.backends.onnx_runtime import OnnxModel, import_onnx
from haystack_distill.utils.model_files import EXPORT_FOLDER, EXPORT_RECORD
from haystack_distill.utils.model_inputs import model_inputs
from tests.conftest import CONTEXTS, QUESTIONS, make_tiny_reader

PAIRS = [(question, CONTEXTS[place]) for question, place, _ in QUESTIONS] + [("Who?", " ".join(CONTEXTS))]
WINDOWS = WindowSettings(max_seq_len=48, doc_stride=16, max_query_length=16)


@pytest.fixture(scope="module")
def exported(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Path]:
    """A tiny reader, and where it was exported to."""
    reader = make_tiny_reader(tokenizer, seed=5, initializer_range=0.3)
    directory = tmp_path_factory.mktemp("exported") / "reader"
    export_reader(reader, directory)
    return reader, directory


def inputs_of(reader: Reader) -> dict[str, torch.Tensor]:
    """A padded batch of windows of several lengths."""
    windows = reader.cut_pairs(PAIRS)
    return model_inputs(windows.collate(windows.__getitems__(range(len(windows)))))


def test_backends_are_checked_by_name() -> None:
    for backend in ("torch", "onnx", "onnx-int8", "openvino", "openvino-int8", "auto"):
        check_backend(backend)
    with pytest.raises(
        DistilError,
        match="backend must be one of torch, onnx, onnx-int8, openvino, openvino-int8, auto, not 'tensorrt'",
    ):
        check_backend("tensorrt")


def test_a_session_gives_the_logits_of_the_model(exported: tuple[Reader, Path]) -> None:
    reader, directory = exported
    inputs = inputs_of(reader)
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    session = OnnxModel(find_exported(str(directory), "onnx"))
    for found, expected in zip(session(inputs), reader.forward(inputs), strict=True):
        assert (found.shape, found.dtype) == (mask.shape, torch.float32)
        torch.testing.assert_close(found[mask], expected[mask], atol=1e-4, rtol=1e-4)


def test_inputs_that_the_model_does_not_take_are_left_out(exported: tuple[Reader, Path]) -> None:
    reader, directory = exported
    session, inputs = OnnxModel(find_exported(str(directory), "onnx")), inputs_of(reader)
    for found, expected in zip(session({"unknown": torch.zeros(1)} | inputs), session(inputs), strict=True):
        assert torch.equal(found, expected)


def test_int8_gives_each_window_what_it_gets_alone(exported: tuple[Reader, Path]) -> None:
    reader, directory = exported
    inputs = inputs_of(reader)
    session = OnnxModel(find_exported(str(directory), "onnx-int8"), "onnx-int8")
    starts, ends = session(inputs)
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = session({name: tensor[row : row + 1, :length] for name, tensor in inputs.items()})
        for found, expected in zip((starts, ends), alone, strict=True):
            assert torch.equal(found[row, :length], expected[0])
            assert (found[row, length:] == -torch.inf).all()


def test_num_threads_are_those_of_the_session(exported: tuple[Reader, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = find_exported(str(exported[1]), "onnx")
    for num_threads, quota, expected in ((2, None, 2), (2, 1, 2), (None, 1, 1), (None, None, 0)):  # 0: ONNX Runtime's
        monkeypatch.setattr(onnx_runtime, "restricted_threads", lambda quota=quota: quota)
        options = OnnxModel(file, num_threads=num_threads)._session.get_session_options()
        assert options.intra_op_num_threads == expected


def test_a_file_that_is_no_model_is_refused(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    broken = tiny_reader().save(tmp_path / "broken")
    (broken / EXPORT_FOLDER).mkdir()
    (broken / FILES["onnx"][0]).write_bytes(b"no model")
    with pytest.raises(DistilError, match=r"model\.onnx cannot be run.*: export the reader again"):
        Reader.load(broken, backend="onnx", window_settings=WINDOWS)


def test_a_reader_that_was_not_exported_is_refused(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    directory = tiny_reader().save(tmp_path / "reader")
    with pytest.raises(DistilError, match=r"has no .*model_int8\.onnx.*haystack-distill export"):
        find_exported(str(directory), "onnx-int8")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DistilError, match=r"need onnxruntime: pip install 'haystack-distill\[onnx\]'"):
        import_onnx("onnxruntime")


def test_threads_of_callers_get_what_one_gets(exported: tuple[Reader, Path]) -> None:
    _, directory = exported
    served = Reader.load(directory, backend="onnx-int8", num_threads=1, window_settings=WINDOWS)
    expected = [served.answer(*pair) for pair in PAIRS]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda pair: served.answer(*pair), PAIRS * 4)) == expected * 4


@pytest.mark.parametrize("int8", ["dynamic", "static"])
def test_int8_logits_depend_on_nothing_but_the_window(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, int8: str
) -> None:
    export_reader(
        tiny_reader(seed=5, initializer_range=0.3),
        tmp_path / "reader",
        ExportSettings(int8=int8),
        calibration=squad_file if int8 == "static" else None,
    )
    served = Reader.load(tmp_path / "reader", backend="onnx-int8", window_settings=WINDOWS)
    windows = served.cut_pairs(PAIRS)
    assert len({int(length) for length in windows.lengths}) > 3
    n_batches = 0
    for batch, starts, ends in served.logits(windows, range(len(windows))):
        n_batches += 1
        for row, window in enumerate(batch["window"].tolist()):
            length = int(windows.lengths[window])
            alone = windows.collate(windows.__getitems__([window]))
            inputs = {name: alone[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
            padded = {name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in inputs.items()}
            for found in (served.forward(inputs), served.forward(padded)):
                for logits, together in zip(found, (starts, ends), strict=True):
                    assert torch.equal(logits[0, :length], together[row, :length])
    assert n_batches < len(windows)


def test_an_onnx_folder_of_the_users_stays(
    tiny_reader: Callable[..., Reader], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = tmp_path / FILES["onnx"][0]
    theirs.parent.mkdir()
    theirs.write_text("mine")
    tiny_reader().save(tmp_path)
    assert theirs.read_text() == "mine"
    assert "was not exported by this package and stays" in caplog.text
    (theirs.parent / EXPORT_RECORD).write_text("{}")
    (theirs.parent / "notes.txt").touch()
    tiny_reader().save(tmp_path)
    assert [path.name for path in theirs.parent.iterdir()] == ["notes.txt"]


def test_other_weights_than_those_that_were_exported_are_refused(
    tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    reader, place = tiny_reader(num_hidden_layers=1), tmp_path / "reader"
    export_reader(reader, place, ExportSettings(int8="none"))
    question, context = PAIRS[0]
    expected = reader.answer(question, context)[0].text
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(place, elsewhere)  # with other times
    assert Reader.load(elsewhere, backend="onnx", window_settings=WINDOWS).answer(question, context)[0].text == expected
    (elsewhere / "model.safetensors").unlink()  # the exports alone serve too
    Reader.load(elsewhere, backend="onnx", window_settings=WINDOWS)
    tiny_reader(num_hidden_layers=1, seed=9).model.save_pretrained(place)  # leaves the export where it is
    with pytest.raises(DistilError, match=r"weights in .* are no longer those that .*model.onnx was made from: export"):
        Reader.load(place, backend="onnx", window_settings=WINDOWS)
    record = json.loads((place / EXPORT_FOLDER / EXPORT_RECORD).read_text())
    record.pop("weights")  # as earlier versions wrote it
    (place / EXPORT_FOLDER / EXPORT_RECORD).write_text(json.dumps(record))
    Reader.load(place, backend="onnx", window_settings=WINDOWS)


def test_copies_and_pickles_open_the_file_again(exported: tuple[Reader, Path]) -> None:
    reader = Reader.load(exported[1], backend="onnx-int8", window_settings=WINDOWS, num_threads=1)
    expected = reader.answer_batch(PAIRS)
    for one in (copy.deepcopy(reader), pickle.loads(pickle.dumps(reader))):
        assert one.exported is not reader.exported
        assert (one.backend, one.answer_batch(PAIRS)) == ("onnx-int8", expected)


def test_a_forked_process_is_refused(exported: tuple[Reader, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader.load(exported[1], backend="onnx", window_settings=WINDOWS)
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    with pytest.raises(DistilError, match=r"loaded before this process was forked.*load it in each process"):
        reader.answer_batch(PAIRS)
