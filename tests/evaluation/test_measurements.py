"""What is known of a reader: the same scores as its own evaluation, one result a question, times that are times."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from haystack_distill import DataError, DistilError, Reader
from haystack_distill.data.squad.load import content_hash, load_examples
from haystack_distill.evaluation.measurements import Measurements, measure_reader
from haystack_distill.export.exporting import ExportSettings, export_reader


def test_the_scores_are_those_of_evaluate(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    reader, examples = tiny_reader(), load_examples(squad_file)
    for threshold in (-100.0, 0.0, 100.0):  # always "no answer", undecided, always a span
        reader.no_answer_threshold = threshold
        measured = measure_reader(reader, examples, "tiny")
        assert measured.metrics == reader.evaluate(examples)
        assert [one.id for one in measured.examples] == examples["id"]
        for name in ("exact", "f1"):
            mean = sum(getattr(one, name) for one in measured.examples) / len(examples)
            assert 100 * mean == pytest.approx(measured.metrics[name])
        assert all(0 <= one.score <= 1 for one in measured.examples)
        assert all(bool(one.text) == (threshold == 100) for one in measured.examples if threshold)


def test_data_without_unanswerable_questions_gets_no_no_answers(
    tiny_reader: Callable[..., Reader], squad_file: Path
) -> None:
    reader = tiny_reader()
    reader.no_answer_threshold = -100.0
    examples = load_examples(squad_file).filter(lambda row: not row["is_impossible"])
    measured = measure_reader(reader, examples, "tiny")
    assert all(one.text for one in measured.examples)
    assert measured.metrics == reader.evaluate(examples)
    pairs = zip(examples["question"], examples["context"], strict=True)
    answers = [reader.answer(*pair, allow_no_answer=False)[0] for pair in pairs]
    assert [one.text for one in measured.examples] == [answer.text for answer in answers]
    assert [one.score for one in measured.examples] == pytest.approx([answer.score for answer in answers], abs=1e-5)


def test_size_time_and_place(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    reader, examples = tiny_reader(), load_examples(squad_file)
    asked: list[str] = []
    predict_pairs = reader.predict_pairs
    reader.predict_pairs = lambda pairs: asked.extend(q for q, _ in pairs) or predict_pairs(pairs)  # type: ignore
    measured = measure_reader(reader, examples, "tiny", role="teacher", timed_questions=4)
    assert asked == [*examples["question"][0:6:2], *examples["question"][0::2]]  # the warm-up, then over all the data
    assert (measured.timed_questions, measured.role, measured.data) == (4, "teacher", content_hash(examples))
    assert measured.milliseconds > 0
    assert measured.megabytes == pytest.approx(reader.n_parameters * 4 / 1e6)
    assert measured.device == "cpu, fp32, 1 thread"
    assert measure_reader(reader, examples, "tiny", timed_questions=50).timed_questions == 8


@pytest.mark.parametrize("backend", ["onnx-int8", "openvino"])
def test_the_size_of_an_exported_model_is_that_of_its_files(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, backend: str
) -> None:
    runtime = backend.partition("-")[0]
    export_reader(tiny_reader(), tmp_path / "reader", ExportSettings(runtime=runtime))
    windows = tiny_reader().window_settings
    exported = Reader.load(tmp_path / "reader", backend=backend, window_settings=windows)
    measured = measure_reader(exported, load_examples(squad_file), "tiny", timed_questions=1)
    sizes = {"onnx-int8": ["onnx/model_int8.onnx"], "openvino": ["openvino_model.xml", "openvino_model.bin"]}[backend]
    found = [next((tmp_path / "reader").rglob(Path(name).name)).stat().st_size for name in sizes]
    assert measured.megabytes == pytest.approx(sum(found) / 1e6)


def test_json_and_back(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    measured = measure_reader(tiny_reader(), load_examples(squad_file), "tiny", timed_questions=1)
    content = json.loads(json.dumps(measured.to_json()))
    assert Measurements.from_json(content) == measured
    for broken in ({**content, "colour": "red"}, {"name": "tiny"}, {**content, "examples": [{"id": "q"}]}):
        with pytest.raises(DistilError, match="measure it again"):
            Measurements.from_json(broken)
    with pytest.raises(DistilError, match="role must be one of teacher, labels, distilled, other"):
        Measurements.from_json({**content, "role": "cousin"})


def test_what_cannot_be_measured_is_refused_before_the_reader_runs(
    tiny_reader: Callable[..., Reader], squad_file: Path
) -> None:
    reader, examples = tiny_reader(), load_examples(squad_file)
    reader.predict_windows = lambda windows: pytest.fail("it ran")  # type: ignore[method-assign]
    with pytest.raises(DataError, match="unlabelled"):
        measure_reader(reader, examples.map(lambda row: {"labelled": False, "is_impossible": False}), "tiny")
    with pytest.raises(DataError, match="no examples"):
        measure_reader(reader, examples.select([]), "tiny")
    with pytest.raises(DistilError, match="role must be one of"):
        measure_reader(reader, examples, "tiny", role="cousin")  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="at least 1, not 0"):
        measure_reader(reader, examples, "tiny", timed_questions=0)
