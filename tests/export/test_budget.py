"""Students that fit a budget."""

from collections.abc import Callable

import pytest
from transformers import BertTokenizerFast, MobileBertConfig, MobileBertForQuestionAnswering

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.export import openvino
from haystack_distill.export.budget import Budget, Candidate, best_student, suggest_students
from haystack_distill.models.backends.choice import installed_runtimes
from tests.conftest import CONTEXTS, QUESTIONS

PAIRS = [(question, CONTEXTS[place]) for question, place, _ in QUESTIONS[:3]]


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("20 ms/question", 20, "ms"), ("7.5ms", 7.5, "ms"), (" 10 MB ", 10, "MB"), ("0.5mb", 0.5, "MB")],
)
def test_budgets(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["20", "fast", "0 ms", "-3 MB", "20 s/question", "10 MB/question"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(DistilError, match="budget must be written like"):
        Budget.parse(text)


def test_candidates_are_largest_first_and_measured(tiny_reader: Callable[..., Reader]) -> None:
    teacher = tiny_reader(num_attention_heads=4)
    found = suggest_students(teacher, Budget(0.07, "MB"), PAIRS)
    cut = [one for one in found if one.making.keys() == {"layers"}]
    assert [one.layers for one in cut] == [3, 2, 1]
    pruned = [one for one in found if "data" in one.making]
    assert [(one.layers, one.intermediate_size) for one in pruned] == [
        *((4, size) for size in (36, 24, 12)),
        (3, 12),  # about as fast as two whole layers
        *((2, size) for size in (36, 24, 12)),
    ]
    assert all(one.hidden_size == 32 for one in [*cut, *pruned])
    assert [one.making for one in pruned[2:5]] == [
        {"intermediate_size": 12, "data": "train.json"},
        {"layers": 3, "intermediate_size": 12, "data": "train.json"},
        {"layers": 2, "intermediate_size": 36, "data": "train.json"},
    ]
    assert {one.hidden_size for one in found} == {32, 24, 16, 8}
    assert [one.parameters for one in found] == sorted((one.parameters for one in found), reverse=True)
    assert all(one.milliseconds > 0 for one in found)
    assert all(one.fits == (one.megabytes <= 0.07) for one in found)
    assert {one.fits for one in found} == {True, False}
    assert all(one.parameters < teacher.n_parameters for one in found)


def candidate(layers: int, neurons: int, milliseconds: float, fits: bool = True, **making: int) -> Candidate:
    return Candidate(layers, 32, neurons, 1000 * layers + neurons, milliseconds / 10, milliseconds, fits, making)


def test_many_narrow_layers_before_few_whole_ones_at_the_same_cost() -> None:
    whole, narrow, cheap = candidate(3, 48, 10), candidate(5, 12, 9.5), candidate(6, 6, 8)
    wider, fresh = candidate(5, 13, 9.6), candidate(6, 48, 10, hidden_size=16)
    too_much = candidate(6, 48, 20, fits=False)
    in_time = Budget(10, "ms")
    assert best_student([too_much, fresh, whole, narrow, cheap], in_time) == narrow
    assert best_student([whole, narrow, wider, cheap], in_time) == wider
    assert best_student([whole, cheap], in_time) == whole  # much less than it may cost
    assert best_student([fresh, too_much], in_time) == fresh
    assert best_student([too_much], in_time) is None
    assert best_student([whole, narrow], Budget(1, "MB")) == narrow


def test_time_is_a_budget_too(tiny_reader: Callable[..., Reader]) -> None:
    found = suggest_students(tiny_reader(), Budget(1e6, "ms"), PAIRS)
    assert all(one.fits for one in found)
    assert not any(one.fits for one in suggest_students(tiny_reader(), Budget(1e-6, "ms"), PAIRS))


def test_sizes_are_those_of_the_backend(tiny_reader: Callable[..., Reader]) -> None:
    teacher = tiny_reader(num_hidden_layers=2, num_attention_heads=1)
    plain, int8 = (suggest_students(teacher, Budget(1, "MB"), PAIRS, backend=name) for name in ("torch", "onnx-int8"))
    assert [one.making for one in plain] == [one.making for one in int8]
    assert plain[0].megabytes != int8[0].megabytes


def test_each_runs_on_what_is_fastest_for_it(tiny_reader: Callable[..., Reader]) -> None:
    teacher = tiny_reader(num_hidden_layers=1, num_attention_heads=1)
    found = suggest_students(teacher, Budget(1, "MB"), PAIRS, backend="auto", num_threads=1)
    assert [one.intermediate_size for one in found] == [36, 24, 12]
    assert all(0 < one.megabytes < 1 for one in found)


def test_shapes_that_an_architecture_cannot_have_are_left_out(tokenizer: BertTokenizerFast) -> None:
    """Three of MobileBERT's four heads do not divide the width inside its layers."""
    config = MobileBertConfig(vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=64)
    settings = {"window_settings": WindowSettings(48, 16, 16), "device": "cpu", "precision": "fp32"}
    teacher = Reader(MobileBertForQuestionAnswering(config), tokenizer, **settings)
    found = suggest_students(teacher, Budget(1000, "MB"), PAIRS[:1])
    assert {one.making["num_attention_heads"] for one in found if "hidden_size" in one.making} == {2, 1}


def test_a_runtime_that_cannot_run_a_student_is_left_out(
    tiny_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_reader(num_hidden_layers=1, num_attention_heads=1)

    def convert(*_: object) -> None:
        raise DistilError("OpenVINO cannot convert the model")

    monkeypatch.setattr(openvino, "convert", convert)
    found = suggest_students(teacher, Budget(1, "MB"), PAIRS[:1], backend="auto", num_threads=1)
    assert len(found) == 3
    if len(installed_runtimes()) > 1:
        with pytest.raises(DistilError, match="OpenVINO cannot convert"):
            suggest_students(teacher, Budget(1, "MB"), PAIRS[:1], backend="openvino")


def test_students_run_as_the_teacher_does(tiny_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_reader(num_hidden_layers=1, num_attention_heads=1).replace(batch_size=3, max_answer_length=5)
    loaded = []
    load = Reader.load

    def watched(name: str, **settings: object) -> Reader:
        loaded.append(settings)
        return load(name, **settings)

    monkeypatch.setattr(Reader, "load", watched)
    suggest_students(teacher, Budget(1, "MB"), PAIRS[:1])
    assert all((one["batch_size"], one["max_answer_length"], one["precision"]) == (3, 5, "fp32") for one in loaded)
    assert len(loaded) == 3


@pytest.mark.skipif(len(installed_runtimes()) < 2, reason="needs openvino, which is not installed here")
def test_a_precision_that_nobody_asked_for_is_none_of_the_backends(
    tiny_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenVINO's dynamic int8 and ONNX Runtime refuse bf16, which a reader has by itself where it is fast."""
    monkeypatch.setenv("HAYSTACK_DISTILL_AUTO_PRECISION", "bf16")
    teacher = tiny_reader(num_hidden_layers=1, num_attention_heads=1).replace(precision="auto")
    assert teacher.precision == "bf16"
    assert suggest_students(teacher, Budget(1, "MB"), PAIRS[:1], backend="openvino-int8")
    assert suggest_students(teacher, Budget(1, "MB"), PAIRS[:1], backend="auto")
    assert "does without" not in caplog.text


def test_refused(tiny_reader: Callable[..., Reader]) -> None:
    with pytest.raises(DistilError, match="no questions to time"):
        suggest_students(tiny_reader(), Budget(1, "MB"), [])
    with pytest.raises(DistilError, match="backend must be one of"):
        suggest_students(tiny_reader(), Budget(1, "MB"), PAIRS, backend="jax")
