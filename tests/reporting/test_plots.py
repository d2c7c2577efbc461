"""The figures hold what was measured, whatever it is called, and stay readable small."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from haystack_distill import DistilError
from haystack_distill.evaluation.measurements import ExampleResult, Measurements
from haystack_distill.reporting import plots

QUESTIONS = ["Who wrote it?", "In what year?", "How long is it?", "Name the author."]
ANSWERS = [["Ada Lovelace"], ["1843", "in 1843"], [], ["the first countess of Lovelace, Ada, born Byron"]]


def made_up(name: str = "teacher", role: str = "teacher", f1: tuple[float, ...] = (1, 1, 0, 0.5)) -> Measurements:
    """Measurements of four questions."""
    examples = tuple(
        ExampleResult(f"q{row}", "text", 0.1 + 0.25 * row, float(one == 1), float(one)) for row, one in enumerate(f1)
    )
    metrics = {"exact": 25.0 * sum(one == 1 for one in f1), "f1": 25.0 * sum(f1), "total": 4}
    return Measurements(name, role, 22_600_000, 90.4, metrics, 40.0, 4, "cpu, fp32, 1 thread", "hash", examples)  # type: ignore[arg-type]


THREE = [made_up(), made_up("labels", "labels", (0, 0, 0, 1)), made_up("distilled", "distilled", (1, 0, 0, 1))]
HISTORY = [
    {"loss": 5.0, "loss_labels": 3.0, "loss_distillation": 2.0, "learning_rate": 1e-4, "step": 10},
    {"eval_f1": 12.0, "step": 15},
    {"loss": 3.0, "loss_labels": 2.0, "loss_distillation": 1.0, "learning_rate": 0.0, "step": 20},
    {"train_loss": 4.0, "train_runtime": 3.0, "step": 20},
]

FIGURES: dict[str, Callable[[list[Measurements]], Figure]] = {
    "size": plots.size_figure,
    "latency": plots.latency_figure,
    "length": lambda measurements: plots.answer_length_figure(measurements, ANSWERS),
    "word": lambda measurements: plots.question_word_figure(measurements, QUESTIONS),
    "calibration": plots.calibration_figure,
}


def texts(figure: Figure) -> list[str]:
    """Everything that a figure says."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_names_its_readers_and_is_readable_small(name: str) -> None:
    figure = FIGURES[name](THREE)
    assert {"teacher", "labels", "distilled"} <= set(texts(figure))
    figure.canvas.draw()
    pixels = 360 / figure.get_figwidth() / 72  # of a point, where the figure is shown 360 pixels wide
    assert all(text.get_fontsize() * pixels >= 11 for text in figure.findobj(Text) if text.get_text())
    page = figure.bbox
    for text in figure.legends[0].get_texts():
        box = text.get_window_extent()
        assert page.x0 <= box.x0 <= box.x1 <= page.x1


@pytest.mark.parametrize("name", FIGURES)
def test_names_are_drawn_as_they_are(name: str) -> None:
    names = ["$x^2$ costs $5", "_hidden", r"{\frac", "a name\nthat goes on and on, much longer than it can be drawn"]
    measurements = [made_up(one, "other") for one in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[name](measurements)
        figure.savefig(BytesIO())
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown[:3] == [r"\$x^2\$ costs \$5", " _hidden", r"{\frac"]  # matplotlib draws \$ as $
    assert len(shown) == 4
    assert len(shown[3]) <= 38
    assert "…" in shown[3]


@pytest.mark.parametrize("name", FIGURES)
def test_one_reader_with_one_question_and_many_readers(name: str) -> None:
    one = replace(made_up("other", "other", (0.0,)), metrics={"exact": 0.0, "f1": 0.0}, milliseconds=0.0)
    if name in ("length", "word"):
        draw = {"length": plots.answer_length_figure, "word": plots.question_word_figure}[name]
        draw([one], [["x"]] if name == "length" else ["x"]).savefig(BytesIO())  # type: ignore[operator]
    else:
        FIGURES[name]([one]).savefig(BytesIO())
    many = [made_up(f"reader {number}", "other") for number in range(14)]
    figure = FIGURES[name](many)
    figure.savefig(BytesIO())
    assert len(figure.legends[0].get_texts()) == 14


def test_size_and_latency_show_the_numbers() -> None:
    measurements = [THREE[0], replace(THREE[2], parameters=2_000_000, milliseconds=20.0)]
    for draw, expected, scale in (
        (plots.size_figure, [22.6, 2.0], "log"),
        (plots.latency_figure, [40.0, 20.0], "linear"),
    ):
        axes = draw(measurements).axes[0]
        drawn = [bar.lines[0].get_xydata()[0].tolist() for bar in axes.containers]  # type: ignore[union-attr, attr-defined]
        assert drawn == [[expected[0], 62.5], [expected[1], 50.0]]
        assert axes.get_xscale() == scale


def test_losses_by_part() -> None:
    figure = plots.loss_figure(HISTORY)
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}  # type: ignore[union-attr]
    assert lines == {
        "sum, weighted": [[10, 5], [20, 3]],
        "distillation": [[10, 2], [20, 1]],
        "labels": [[10, 3], [20, 2]],
    }
    assert plots.loss_figure([{"loss": 100.0, "step": 1}, {"loss": 1.0, "step": 2}]).axes[0].get_yscale() == "log"
    assert plots.has_losses(HISTORY)
    assert not plots.has_losses(HISTORY[1:2])
    with pytest.raises(DistilError, match="lower log_every"):
        plots.loss_figure([])


def test_groups() -> None:
    words = {
        "Whose book is it?": "who",
        "In what year?": "what",
        "The treaty was signed where?": "where",
        "Name the author.": "other",
        "WHY, then?": "why",
        "Whatever the other says": "other",
        "": "other",
    }
    assert {question: plots.question_word(question) for question in words} == words
    assert [plots.answer_length(one) for one in ANSWERS] == ["2", "1", "no answer", "6-10"]
    lengths = {1: "1", 3: "3", 4: "4-5", 5: "4-5", 6: "6-10", 10: "6-10", 11: "11+", 40: "11+"}
    assert {words: plots.answer_length(["x " * words]) for words in lengths} == lengths
    assert set(lengths.values()) < set(plots.ANSWER_LENGTHS)


def test_group_means_by_hand() -> None:
    figure = plots.question_word_figure(THREE[:1], QUESTIONS)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["who (1)", "what (1)", "how (1)", "other (1)"]
    assert axes.containers[0].lines[0].get_xdata().tolist() == [100, 100, 0, 50]  # type: ignore[union-attr, attr-defined]


def test_pyplot_is_left_alone() -> None:
    before = "matplotlib.pyplot" in sys.modules
    plots.size_figure(THREE).savefig(BytesIO())
    assert ("matplotlib.pyplot" in sys.modules) == before
