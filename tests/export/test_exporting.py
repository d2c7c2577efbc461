"""Exported readers give the model's answers, refuse what they cannot do, and go when their weights do."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    BertTokenizerFast,
    DebertaConfig,
    DebertaV2Config,
    LongformerConfig,
    PretrainedConfig,
)

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.export.exporting import ExportSettings, export_reader, holds_reader
from haystack_distill.export.onnx import quiet
from haystack_distill.models.backends.exported import FILES
from haystack_distill.models.backends.onnx_runtime import OnnxModel
from haystack_distill.models.embedded_teacher import embedded_teacher
from haystack_distill.objectives import FeatureMaps, PredictionLayer
from haystack_distill.training.adapters import Adapters
from haystack_distill.utils.cache import CACHE_VARIABLE
from haystack_distill.utils.devices import AUTO_PRECISION_VARIABLE
from haystack_distill.utils.model_files import EXPORT_FOLDER, EXPORT_RECORD
from tests.conftest import CONTEXTS, QUESTIONS, SHARED

PAIRS = [(question, CONTEXTS[place]) for question, place, _ in QUESTIONS] + [("Who?", " ".join(CONTEXTS))]
WINDOWS = WindowSettings(max_seq_len=48, doc_stride=16, max_query_length=16)


@pytest.fixture(scope="module")
def exported(tokenizer: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Path, dict]:
    """A tiny reader, where it was exported to, and the record."""
    from tests.conftest import make_tiny_reader

    reader = make_tiny_reader(tokenizer, seed=5, initializer_range=0.3)  # type: ignore[arg-type]
    directory = tmp_path_factory.mktemp("exported") / "reader"
    return reader, directory, export_reader(reader, directory)


def require_same_answers(served: Reader, reader: Reader, pairs: list[tuple[str, str]]) -> None:
    for found, expected in zip(served.answer_batch(pairs, 3), reader.answer_batch(pairs, 3), strict=True):
        assert [(one.start, one.end, one.no_answer) for one in found] == [
            (one.start, one.end, one.no_answer) for one in expected
        ]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_onnx_says_what_the_model_says(exported: tuple[Reader, Path, dict]) -> None:
    reader, directory, record = exported
    served = Reader.load(directory, backend="onnx", window_settings=WINDOWS)
    for pairs in (PAIRS, PAIRS[:1], PAIRS[-1:]):  # other batches and lengths than it was exported with
        require_same_answers(served, reader, pairs)
    assert record["backends"]["onnx"]["largest_difference"] < 1e-3
    assert served.n_parameters == reader.n_parameters
    assert json.loads((directory / EXPORT_FOLDER / EXPORT_RECORD).read_text()) == json.loads(json.dumps(record))


def test_a_reader_in_bf16_is_exported_in_fp32(
    tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tiny_reader(seed=5, initializer_range=0.3)
    reader.precision = "bf16"
    record = export_reader(reader, tmp_path / "reader", ExportSettings(int8="none"))
    assert record["backends"]["onnx"]["largest_difference"] < 1e-4
    assert reader.precision == "bf16"
    monkeypatch.setenv(AUTO_PRECISION_VARIABLE, "bf16")
    assert Reader.load(tmp_path / "reader", window_settings=WINDOWS, device="cpu").precision == "bf16"
    assert Reader.load(tmp_path / "reader", window_settings=WINDOWS, backend="onnx").precision == "fp32"


def test_int8_is_smaller_and_near(exported: tuple[Reader, Path, dict]) -> None:
    _, directory, record = exported
    served = Reader.load(directory, backend="onnx-int8", window_settings=WINDOWS)
    assert len(served.answer_batch(PAIRS)) == len(PAIRS)
    assert record["backends"]["onnx-int8"]["megabytes"] < record["backends"]["onnx"]["megabytes"]
    assert 1e-4 < record["backends"]["onnx-int8"]["largest_difference"] < 0.5  # int8, and still the same model
    assert 0 <= record["backends"]["onnx-int8"]["same_answer"] <= 1


def test_int8_answers_are_the_same_alone_and_among_others(exported: tuple[Reader, Path, dict]) -> None:
    _, directory, _ = exported
    served = Reader.load(directory, backend="onnx-int8", window_settings=WINDOWS)
    assert served.answer_batch(PAIRS, 3) == [served.answer(*pair, 3) for pair in PAIRS]
    assert served.answer_batch(PAIRS[::-1], 3)[::-1] == served.answer_batch(PAIRS, 3)


def test_static_quantisation_needs_and_uses_calibration_data(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    reader = tiny_reader(initializer_range=0.3)
    with pytest.raises(DistilError, match="calibration data is needed"):
        export_reader(reader, tmp_path / "a", ExportSettings(int8="static"))
    with pytest.raises(DistilError, match="has no effect with int8='dynamic'"):
        export_reader(reader, tmp_path / "a", calibration=squad_file)
    static = ExportSettings(int8="static")
    with pytest.raises(DistilError, match="8 questions of the calibration data are among those that are measured on"):
        export_reader(reader, tmp_path / "b", static, calibration=squad_file, data=squad_file)
    assert not (tmp_path / "b").exists()
    others = tmp_path / "others.json"
    others.write_text(squad_file.read_text().replace("?", " then?"))
    record = export_reader(reader, tmp_path / "b", static, calibration=others, data=squad_file)
    assert 1e-4 < record["backends"]["onnx-int8"]["largest_difference"] < 0.5
    assert record["backends"]["torch"]["metrics"]["total"] == 8
    assert set(record["backends"]["onnx-int8"]["metrics"]) == set(record["backends"]["torch"]["metrics"])


def test_an_exporter_does_not_set_up_the_root_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with quiet():
        logging.error("This function adds a handler where there is none.")
    assert logging.root.handlers == []


def test_an_exporter_leaves_logging_as_it_was() -> None:
    before = logging.root.manager.disable
    try:
        for level in (logging.NOTSET, logging.ERROR):
            logging.disable(level)
            with quiet():
                assert logging.root.manager.disable == max(level, logging.WARNING)
            assert logging.root.manager.disable == level
    finally:
        logging.disable(before)


def test_without_int8(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    export_reader(tiny_reader(), tmp_path / "reader")
    record = export_reader(tiny_reader(seed=1), tmp_path / "reader", ExportSettings(int8="none"))
    assert "onnx-int8" not in record["backends"]
    assert not (tmp_path / "reader" / FILES["onnx-int8"][0]).exists()  # the first one's would be another model
    with pytest.raises(DistilError, match="haystack-distill export"):
        Reader.load(tmp_path / "reader", backend="onnx-int8")


@pytest.mark.slow
def test_saving_other_weights_removes_what_was_exported(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    export_reader(tiny_reader(), tmp_path / "reader", ExportSettings(int8="none"))
    tiny_reader(seed=1).save(tmp_path / "reader")
    with pytest.raises(DistilError, match="haystack-distill export"):
        Reader.load(tmp_path / "reader", backend="onnx")


def test_a_reader_of_trained_weights_alone_stays_one(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    tiny_reader().save(tmp_path / "base")
    reader = Reader.load(tmp_path / "base", window_settings=WINDOWS, device="cpu")
    torch.nn.init.ones_(reader.model.qa_outputs.bias)
    reader.save(tmp_path / "trained", only_trained=True)
    loaded = Reader.load(tmp_path / "trained", window_settings=WINDOWS, device="cpu")
    export_reader(loaded, tmp_path / "trained", ExportSettings(int8="none"))
    assert not (tmp_path / "trained" / "model.safetensors").exists()
    served = Reader.load(tmp_path / "trained", backend="onnx", window_settings=WINDOWS)
    require_same_answers(served, reader, PAIRS[:2])


def test_another_tokenizer_is_another_reader(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = tiny_reader()
    reader.save(tmp_path / "reader")
    assert holds_reader(tmp_path / "reader", reader)
    content = json.loads((tmp_path / "reader" / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["the"], words["of"] = words["of"], words["the"]
    (tmp_path / "reader" / "tokenizer.json").write_text(json.dumps(content))
    assert not holds_reader(tmp_path / "reader", reader)


def test_what_is_read_goes_with_the_scratch(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = load_examples(squad_file, cache_dir=tmp_path / "own")
    monkeypatch.setenv(CACHE_VARIABLE, "/proc/nowhere")
    record = export_reader(tiny_reader(), tmp_path / "reader", ExportSettings(int8="none"), data=examples)
    assert record["backends"]["onnx"]["metrics"]["total"] == 8


def test_what_a_model_came_with_is_not_replaced(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    """Models of the hub may hold a graph that somebody else exported."""
    reader = tiny_reader()
    for directory in (tmp_path / "own", tmp_path / "other"):
        (tiny_reader(seed=1) if directory.name == "other" else reader).save(directory)
        theirs = directory / FILES["onnx"][0]
        theirs.parent.mkdir()
        theirs.write_text("theirs")
        with pytest.raises(DistilError, match=r"model\.onnx would be replaced, and was not exported by this package"):
            export_reader(reader, directory)
        assert theirs.read_text() == "theirs"
        assert [one.name for one in theirs.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_another_runtime_stays_where_the_reader_is_the_same(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    directory = tmp_path / "reader"

    def present() -> list[str]:
        return [name for name, files in FILES.items() if all((directory / file).exists() for file in files)]

    export_reader(tiny_reader(), directory)
    assert present() == ["onnx", "onnx-int8"]
    reader = Reader.load(directory, window_settings=WINDOWS, device="cpu")
    export_reader(reader, directory, ExportSettings(runtime="openvino", int8="none"))
    assert present() == ["onnx", "onnx-int8", "openvino"]
    export_reader(reader, directory, ExportSettings(int8="none"))  # of the same runtime: what is not made anew goes
    assert present() == ["onnx", "openvino"]
    export_reader(tiny_reader(seed=1), directory, ExportSettings(int8="none"))
    assert present() == ["onnx"]  # the other would still be the one before


def test_exported_readers_cannot_learn(
    exported: tuple[Reader, Path, dict], tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    _, directory, _ = exported
    served = Reader.load(directory, backend="onnx", window_settings=WINDOWS)
    for use in (
        lambda: served.save(tmp_path / "x"),
        served.copy,
        lambda: students.from_teacher(served, layers=1),
        lambda: students.from_config(served, hidden_size=8),
        lambda: students.prune_vocabulary(served, CONTEXTS),
        lambda: ReaderTrainer(served).train(squad_file),
        lambda: ReaderTrainer(tiny_reader()).distil_intermediate_layers_from(served, squad_file),
        lambda: export_reader(served, tmp_path / "x"),
    ):
        with pytest.raises(DistilError, match="load the reader with backend='torch'"):
            use()
    assert not (tmp_path / "x").exists()


def test_refused(exported: tuple[Reader, Path, dict]) -> None:
    _, directory, _ = exported
    with pytest.raises(DistilError, match="num_threads must be at least 1"):
        Reader.load(directory, num_threads=0)
    with pytest.raises(DistilError, match="runs on the processor"):
        Reader.load(directory, backend="onnx", precision="bf16", window_settings=WINDOWS)
    with pytest.raises(DistilError, match="int8 must be one of"):
        ExportSettings(int8="int4")


@pytest.mark.slow
def test_a_model_whose_export_says_something_else_is_refused(
    tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tiny_reader(initializer_range=0.3)
    honest = OnnxModel.__call__
    monkeypatch.setattr(OnnxModel, "__call__", lambda *given: tuple(logits + 1 for logits in honest(*given)))
    with pytest.raises(DistilError, match="differ by up to"):
        export_reader(reader, tmp_path / "reader")
    assert not (tmp_path / "reader").exists()


def reader_of(config: PretrainedConfig, tokenizer: BertTokenizerFast) -> Reader:
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config)
    return Reader(model, tokenizer, window_settings=WINDOWS, device="cpu", precision="fp32")


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("kind", [DebertaConfig, DebertaV2Config])
def test_deberta_is_exported(tokenizer: BertTokenizerFast, tmp_path: Path, kind: type) -> None:
    config = kind(
        **SMALL, vocab_size=len(tokenizer), relative_attention=True, pos_att_type=["c2p", "p2c"], initializer_range=0.3
    )
    reader = reader_of(config, tokenizer)
    export_reader(reader, tmp_path / "reader", ExportSettings(int8="none"))
    served = Reader.load(tmp_path / "reader", backend="onnx", window_settings=WINDOWS)
    found, expected = served.answer_batch(PAIRS, 3), reader.answer_batch(PAIRS, 3)
    for mine, theirs in zip(found, expected, strict=True):
        assert [(one.start, one.end) for one in mine] == [(one.start, one.end) for one in theirs]


QUICK = TrainingSettings(max_steps=2, batch_size=4, learning_rate=1e-2, precision="fp32", progress=False)


def loaded(directory: Path, **backend: str) -> Reader:
    return Reader.load(directory, device="cpu", precision="fp32", window_settings=WINDOWS, **backend)


def test_a_distilled_mobilebert_is_loaded_and_exported(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    teacher = tiny_reader(seed=5, initializer_range=0.3)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    bottleneck = {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2}
    student = students.from_config(teacher, model_type="mobilebert", **shape, **bottleneck, initializer_range=0.15)
    method = FeatureMaps() + PredictionLayer()
    assert ReaderTrainer(student, tmp_path / "run", QUICK).distil(teacher, squad_file, method).steps == 2
    again = loaded(tmp_path / "run")
    assert again.untrained == ()
    assert all(again.model.state_dict()[name].equal(weight) for name, weight in student.model.state_dict().items())
    record = export_reader(again, tmp_path / "reader", ExportSettings(int8="none"))
    assert record["backends"]["onnx"]["largest_difference"] < 1e-3
    require_same_answers(loaded(tmp_path / "reader", backend="onnx"), student, PAIRS)


def test_adapters_are_exported(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> None:
    student = loaded(tiny_reader(seed=5, initializer_range=0.3).save(tmp_path / "base"))
    adaptation = Adapters(adapter_size=4)
    ReaderTrainer(student, tmp_path / "run", QUICK).distil(None, squad_file, "labels", adaptation=adaptation)
    assert student.answer(*PAIRS[0])[0].score != loaded(tmp_path / "base").answer(*PAIRS[0])[0].score
    export_reader(loaded(tmp_path / "run"), tmp_path / "reader", ExportSettings(int8="none"))
    require_same_answers(loaded(tmp_path / "reader", backend="onnx"), student, PAIRS)
    require_same_answers(loaded(tmp_path / "reader"), student, PAIRS)


def test_longformer_is_refused_before_it_is_traced(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    reader = reader_of(LongformerConfig(**SMALL, vocab_size=len(tokenizer), attention_window=16), tokenizer)
    with pytest.raises(
        DistilError, match="LongformerForQuestionAnswering cannot be exported to ONNX, because the traced"
    ):
        export_reader(reader, tmp_path / "reader")
    assert not (tmp_path / "reader").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [("model.onnx", "runs only at the length"), ("model_int8.onnx", r"in int8 .*: export it with int8='none'")],
)
def test_an_export_that_cannot_be_run_is_refused(
    tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, message: str
) -> None:
    honest = OnnxModel.__call__

    def fail(self: OnnxModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.path.name == file:
            raise RuntimeError("Non-zero status code\nreturned while running Reshape node")
        return honest(self, inputs)

    monkeypatch.setattr(OnnxModel, "__call__", fail)
    with pytest.raises(DistilError, match=message) as error:
        export_reader(tiny_reader(), tmp_path / "reader")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "reader").exists()


def test_threads_of_torch_are_those_asked_for(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    directory = tiny_reader().save(tmp_path / "reader")
    before = torch.get_num_threads()
    try:
        Reader.load(directory, num_threads=2, window_settings=WINDOWS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_the_pretrained_reader_keeps_its_answers_in_int8(tmp_path: Path) -> None:
    teacher = embedded_teacher(window_settings=WindowSettings(128, 64, 32), device="cpu", precision="fp32")
    export_reader(teacher, tmp_path / "reader")
    served = Reader.load(tmp_path / "reader", backend="onnx-int8", window_settings=teacher.window_settings)
    asked = [(question, CONTEXTS[place], answer) for question, place, answer in QUESTIONS if answer is not None]
    found = served.answer_batch([(question, context) for question, context, _ in asked], allow_no_answer=False)
    expected = teacher.answer_batch([(question, context) for question, context, _ in asked], allow_no_answer=False)
    assert sum(one[0].text == other[0].text for one, other in zip(found, expected, strict=True)) >= len(asked) - 1


@pytest.mark.slow
@pytest.mark.real_data
def test_int8_answers_real_questions_the_same_alone_and_among_others(tmp_path: Path) -> None:
    model, data = SHARED / "models" / "minilm-l6-squad2", SHARED / "data" / "squad" / "dev-v1.1.json.gz"
    if not model.is_dir() or not data.is_file():
        pytest.skip("needs ../shared/models and ../shared/data")
    from haystack_distill.data.squad.load import load_examples

    export_reader(Reader.load(model, device="cpu", precision="fp32"), tmp_path / "reader")
    served = Reader.load(tmp_path / "reader", backend="onnx-int8")
    examples = load_examples(data).select(range(0, 10570, 400))
    pairs = list(zip(examples["question"], examples["context"], strict=True))
    assert served.answer_batch(pairs, 3) == [served.answer(*pair, 3) for pair in pairs]


@pytest.mark.slow
@pytest.mark.real_data
def test_int8_loses_little_on_squad(tmp_path: Path) -> None:
    model, data = SHARED / "models" / "minilm-l6-squad2", SHARED / "data" / "squad" / "dev-v1.1.json.gz"
    if not model.is_dir() or not data.is_file():
        pytest.skip("needs ../shared/models and ../shared/data")
    from haystack_distill.data.squad.load import load_examples

    reader = Reader.load(model, device="cpu", precision="fp32")
    examples = load_examples(load_examples(data).select(range(0, 10570, 150)))
    record = export_reader(reader, tmp_path / "reader", data=examples)
    f1 = {name: entry["metrics"]["f1"] for name, entry in record["backends"].items()}
    assert f1["onnx"] == pytest.approx(f1["torch"], abs=0.2)
    assert f1["onnx-int8"] > f1["torch"] - 3  # 71 questions; 500 are measured by the benchmark


def test_a_bilstm_is_exported(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = students.bilstm(tiny_reader(), embedding_size=12, units=8)
    with torch.no_grad():
        for parameter in reader.model.parameters():
            parameter.mul_(3)  # so that answers differ
    record = export_reader(reader, tmp_path)
    served = loaded(tmp_path, backend="onnx")
    for pairs in (PAIRS, PAIRS[:1], PAIRS[-1:]):
        require_same_answers(served, reader, pairs)
    assert record["backends"]["onnx"]["largest_difference"] < 1e-4
    int8 = loaded(tmp_path, backend="onnx-int8")
    assert "DynamicQuantizeLSTM" in {node.op_type for node in onnx.load(tmp_path / FILES["onnx-int8"][0]).graph.node}
    assert record["backends"]["onnx-int8"]["same_answer"] > 0.5
    for alone, among in zip((int8.answer(*pair)[0] for pair in PAIRS), int8.answer_batch(PAIRS), strict=True):
        assert alone.logit == among[0].logit
