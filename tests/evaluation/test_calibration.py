"""Calibration: temperature and threshold by hand, what is folded, what stays, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from haystack_distill import DistilError, Reader, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.evaluation import calibration
from haystack_distill.evaluation.calibration import (
    best_threshold,
    calibrate,
    negative_log_likelihood,
    scores_at,
)
from haystack_distill.models.calibration import calibration_record, stored_threshold
from haystack_distill.models.embedded_teacher import embedded_teacher
from tests.conftest import CONTEXTS, squad_content


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """A SQuAD 2.0 file of two articles."""
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(squad_content(repeat=2)), encoding="utf-8")
    return path


@pytest.fixture
def answerable(tmp_path: Path) -> Path:
    """The same without the questions that have no answer."""
    content = squad_content(repeat=2)
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [qa for qa in paragraph["qas"] if qa["answers"]]
    path = tmp_path / "answerable.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def teacher() -> Reader:
    """A trained reader, small enough for short contexts."""
    return embedded_teacher(window_settings=WindowSettings(64, 24, 16), device="cpu", precision="fp32")


def test_scores_by_hand() -> None:
    starts, ends = np.log(np.array([8.0, 4.0, 4.0])), np.log(np.array([1.0, 1.0, 2.0]))
    windows = [calibration._Window(starts, ends), calibration._Window(starts[:2], ends[:2])]
    logits = np.log(np.array([8.0 * 2.0, 8.0 * 1.0]))
    assert scores_at(1.0, logits, windows) == pytest.approx([8 / 16 * 2 / 4, 8 / 12 * 1 / 2])
    root = math.sqrt(8), math.sqrt(4), math.sqrt(4)
    expected = root[0] / sum(root) * math.sqrt(2) / (2 + math.sqrt(2))
    assert scores_at(2.0, logits, windows)[0] == pytest.approx(expected)
    # The no-answer, which stands first, becomes half as likely a start and half as likely an end.
    less = windows[0].less(2 * math.log(2))
    assert scores_at(1.0, logits[:1], [less]) == pytest.approx([16 / (12 * 3.5)])
    assert scores_at(1e9, logits, windows) == pytest.approx([1 / 9, 1 / 4])


def test_the_likelihood_by_hand() -> None:
    scores, right = np.array([0.5, 0.25, 1.0]), np.array([True, False, True])
    assert negative_log_likelihood(scores, right) == pytest.approx((math.log(2) - math.log(0.75)) / 3)
    assert negative_log_likelihood(np.array([1.0]), np.array([False])) == pytest.approx(-math.log(1e-12))


@pytest.mark.parametrize(
    ("gaps", "answered", "silent", "threshold"),
    [
        ([-3.0, 1.0, 2.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], -1.0),  # between the right span and the unanswerable
        ([2.0, -3.0, 1.0], [0.0, 1.0, 0.5], [1.0, 0.0, 0.0], 1.5),  # whatever the order
        ([-3.0, 1.0], [0.0, 0.0], [1.0, 1.0], -4.0),  # nothing is answered
        ([-3.0, 1.0], [1.0, 0.2], [0.0, 0.0], 1.0),  # everything is
        ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], -1.0),  # equal gaps stay together
        ([-3.0, math.inf], [1.0, 0.0], [0.0, 1.0], -3.0),  # no span: never answered
        ([math.inf], [0.0], [1.0], 0.0),
    ],
)
def test_the_best_threshold_by_hand(
    gaps: list[float], answered: list[float], silent: list[float], threshold: float
) -> None:
    assert best_threshold(gaps, answered, silent) == threshold


def test_a_random_reader_learns_to_answer_nothing(tiny_reader: Callable[..., Reader], articles: Path) -> None:
    reader = tiny_reader(seed=3, initializer_range=0.4)
    head = reader.model.qa_outputs.weight.clone()
    found = calibrate(reader, articles, progress=False)
    assert torch.equal(reader.model.qa_outputs.weight, head)  # a copy is calibrated
    assert not calibration_record(reader.model.config)
    torch.testing.assert_close(found.reader.model.qa_outputs.weight, head / found.temperature)
    assert stored_threshold(found.reader.model.config) == found.no_answer_threshold
    assert found.threshold_for == "f1"
    assert found.after.metrics["exact"] >= max(12.5, found.before.metrics["exact"])  # 1 of 8 is unanswerable
    assert found.fitted_questions == len(found.before.examples) == 8
    assert found.changed_answers == 0


def test_answers_stay_and_scores_become_chances(teacher: Reader, answerable: Path, tmp_path: Path) -> None:
    found = calibrate(teacher, answerable, seed=1, progress=False)
    assert found.threshold_for is None
    assert "no_answer_threshold" not in calibration_record(found.reader.model.config)
    assert [one.text for one in found.after.examples] == [one.text for one in found.before.examples]
    assert found.after.metrics == found.before.metrics
    assert found.changed_answers == 0
    # The copies of the articles are alike, so what is judged is what was fitted: the likelihood is the highest there.
    right = np.array([one.exact == 1 for one in found.after.examples])
    judged = load_examples(answerable).select(range(len(right)))
    losses = []
    for temperature in (found.temperature / 1.1, found.temperature, found.temperature * 1.1):
        reader = teacher.copy()
        reader.model.qa_outputs.weight.data /= temperature
        reader.model.qa_outputs.bias.data /= temperature
        scores = np.array([one.answers[0].score for one in reader.predict(judged)])
        losses.append(negative_log_likelihood(scores, right))
    assert losses[1] == min(losses)
    # A second time composes: there is nothing left to do.
    again = calibrate(found.reader, answerable, seed=1, progress=False)
    assert again.temperature == pytest.approx(1, abs=1e-3)
    total = calibration_record(again.reader.model.config)["temperature"]
    assert total == pytest.approx(found.temperature * again.temperature)
    saved = found.reader.save(tmp_path / "saved")
    loaded = Reader.load(saved, window_settings=teacher.window_settings, precision=teacher.precision)
    scores = [one.answers[0].score for one in loaded.predict(judged)]
    assert scores == pytest.approx([one.score for one in found.after.examples], abs=1e-5)


def test_answers_stay_among_windows_and_no_answers(teacher: Reader) -> None:
    """Several windows and the no-answer: a temperature leaves the choice as it is, with the threshold divided too."""
    pairs = [(question, " ".join(CONTEXTS)) for question in ("Who built it?", "When?", "Who owns the glacier?")]
    before = teacher.predict_pairs(pairs, top_k=5)
    assert len(teacher.cut_pairs(pairs)) > len(pairs)
    for temperature, threshold in ((0.3, -2.0), (3.0, 1.0)):
        scaled = calibration._calibrated(teacher, temperature, threshold, "f1")
        after = scaled.predict_pairs(pairs, top_k=5)
        for one, other in zip(before, after, strict=True):
            mine, theirs = (
                [(answer.text, answer.start) for answer in answers]
                for answers in (one.ranked(5, threshold), other.ranked(5, 0.0))
            )
            assert mine == theirs
            assert other.answers[0].logit == pytest.approx(one.answers[0].logit / temperature, abs=1e-4)


def test_the_threshold_may_stay(teacher: Reader, articles: Path) -> None:
    found = calibrate(teacher.replace(no_answer_threshold=3.0), articles, threshold_for="none", progress=False)
    assert found.threshold_for is None
    assert found.no_answer_threshold == pytest.approx(3 / found.temperature)
    assert [one.text for one in found.after.examples] == [one.text for one in found.before.examples]
    again = calibrate(found.reader, articles, threshold_for="none", progress=False)
    assert again.no_answer_threshold == pytest.approx(found.no_answer_threshold / again.temperature)
    assert again.temperature == pytest.approx(1, abs=1e-3)


def test_what_is_refused(teacher: Reader, articles: Path, squad_file: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"held_out": 1.0}, "held_out must be a number between 0 and 1"),
        ({"seed": -1}, "seed must be"),
        ({"threshold_for": "em"}, 'threshold_for must be "f1", "exact" or "none"'),
    ):
        with pytest.raises(DistilError, match=message):
            calibrate(teacher, articles, **arguments)  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="held_out holds out whole articles, of which there are 1; give data on more"):
        calibrate(teacher, squad_file)
    silent = teacher.replace(no_answer_threshold=float("-inf"))
    with pytest.raises(DistilError, match="no_answer_threshold must be finite to be stored"):
        calibrate(silent, articles, threshold_for="none", progress=False)
    untrained = teacher.copy()
    untrained.untrained = ("qa_outputs.weight",)
    with pytest.raises(DistilError, match=r"qa_outputs\.weight are untrained; train it before"):
        calibrate(untrained, articles)
    with pytest.raises(DistilError, match=r"at speed 0\.5 a temperature changes at which layer.*speed=0\)"):
        calibrate(students.early_exit(teacher, branch_size=0).replace(speed=0.5), articles)


def test_nothing_right(tiny_reader: Callable[..., Reader], answerable: Path) -> None:
    with pytest.raises(DistilError, match="none of the 7 answers that are fitted on are right"):
        calibrate(tiny_reader(), answerable, progress=False)


def test_an_exported_reader_is_refused(tiny_reader: Callable[..., Reader], articles: Path) -> None:
    from types import SimpleNamespace

    reader = tiny_reader()
    reader.exported = SimpleNamespace(path="onnx/model.onnx")  # type: ignore[assignment]
    with pytest.raises(DistilError, match=r"model\.onnx are fixed; calibrate the reader that it was exported from"):
        calibrate(reader, articles)


def test_a_threshold_may_go_back_to_0(tiny_reader: Callable[..., Reader]) -> None:
    reader = tiny_reader()
    reader.model.config.calibration = {"temperature": 2.0, "no_answer_threshold": 2.0}
    back = calibration._calibrated(reader, 1.5, -2.0, None)
    assert back.model.config.calibration == {"temperature": 3.0}


def test_folding_is_checked_to_the_last_layer(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    """At a speed, another temperature lets windows leave at other layers, with other logits."""
    reader = students.early_exit(tiny_reader(seed=3), branch_size=8).replace(speed=0.95)
    windows = reader.cut(load_examples(squad_file))
    for temperature in (0.3, 3.0):
        calibration._require_folded(
            reader, calibration._calibrated(reader, temperature, 0.0, None), temperature, windows
        )
