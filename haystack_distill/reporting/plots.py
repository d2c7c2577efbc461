"""Figures of measurements and of training logs, readable at a width of 360 pixels.

matplotlib is imported when a figure is made: it takes a second, and most commands make none.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import ExampleResult, Measurements
from haystack_distill.evaluation.reliability import reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUESTION_WORDS = ("who", "what", "when", "where", "why", "how", "which", "other")
ANSWER_LENGTHS = ("no answer", "1", "2", "3", "4-5", "6-10", "11+")

# 4 inches at a width of 360 pixels are 90 pixels per inch, so 9.5 points are 12 pixels.
_WIDTH, _HEIGHT, _POINTS = 4.0, 2.9, 9.5
_TEACHER_COLOURS = ("#333333", "#8a8a8a")
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # by Okabe and Ito, for colour-blind readers
_MARKERS = {"teacher": "D", "labels": "s", "distilled": "o", "other": "^"}
_LONGEST_NAME = 38  # characters of a legend entry that fit the width


def question_word(question: str) -> str:
    """The first question word in a question, one of `QUESTION_WORDS`; "whose" and "whom" count as "who"."""
    for word in re.findall(r"[^\W\d_]+", question.lower()):
        word = {"whose": "who", "whom": "who"}.get(word, word)
        if word in QUESTION_WORDS and word != "other":
            return word
    return "other"


def answer_length(answers: Sequence[str]) -> str:
    """The group, one of `ANSWER_LENGTHS`, of the (lower) median length in words of a question's reference answers."""
    if not answers:
        return "no answer"
    lengths = sorted(len(answer.split()) for answer in answers)
    words = lengths[(len(lengths) - 1) // 2]
    for most, group in ((3, str(max(words, 1))), (5, "4-5"), (10, "6-10")):
        if words <= most:
            return group
    return "11+"


def size_figure(measurements: Sequence[Measurements]) -> Figure:
    """Millions of parameters against F1, with one standard error of F1."""
    return _against_f1(measurements, lambda one: one.parameters / 1e6, "parameters (millions)")


def latency_figure(measurements: Sequence[Measurements]) -> Figure:
    """Milliseconds for one question against F1, with one standard error of F1."""
    return _against_f1(measurements, lambda one: one.milliseconds, "milliseconds per question")


def arms_figure(f1: Mapping[str, Sequence[float]]) -> Figure:
    """F1 of each student of each arm of a comparison, one row per arm; a dotted line at the first row, the teacher.

    Args:
        f1: Name of an arm -> F1 of each of its students in per cent.
    """
    figure, axes = _figure(entries=0, height=0.9 + 0.4 * len(f1))
    for row, (name, values) in enumerate(f1.items()):
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "bottom", "fontsize": _POINTS - 1}
        axes.text(0.0, row - 0.15, _label(name), **place)  # above its points, because long names leave no room beside
        colour = _TEACHER_COLOURS[0] if row == 0 else _COLOURS[(row - 1) % len(_COLOURS)]
        axes.plot(values, [row] * len(values), color=colour, marker="o", linestyle="", markersize=5, alpha=0.8)
        axes.plot([_mean(values)], [row], color=colour, marker="|", linestyle="", markersize=13)
    axes.axvline(_mean(next(iter(f1.values()))), color=_TEACHER_COLOURS[0], linewidth=0.8, linestyle=":")
    axes.set_yticks([])
    axes.set_ylim(len(f1) - 0.5, -0.7)
    axes.margins(x=0.1)
    axes.set_xlabel("F1 (%)")
    return figure


def has_losses(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the log of a run contains losses."""
    return any("loss" in line and "step" in line for line in history)


def loss_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """The loss components in the log of a run, over the optimiser steps.

    Raises:
        DistilError: The log contains no losses.
    """
    lines = [line for line in history if "loss" in line and "step" in line]
    if not lines:
        raise DistilError("the log of the run contains no losses: lower log_every, so that at least one step is logged")
    parts = sorted({key for line in lines for key in line if key.startswith("loss_")})
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(entries=len(parts) + 1)
    drawn = [("sum, weighted", "loss"), *((part.removeprefix("loss_").replace("_", " "), part) for part in parts)]
    values: list[float] = []
    for number, (name, key) in enumerate(drawn):
        points = [(line["step"], line[key]) for line in lines if key in line]
        colour, line = ("#333333", "--") if key == "loss" else (_COLOURS[(number - 1) % len(_COLOURS)], "-")
        marker = "." if len(points) < 30 else ""
        steps, losses = zip(*points, strict=True)
        axes.plot(
            steps, losses, label=_label(name), zorder=2 + (key == "loss"), color=colour, linestyle=line, marker=marker
        )
        values += [value for _, value in points]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, *values))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    _legend(figure)
    return figure


def answer_length_figure(measurements: Sequence[Measurements], answers: Sequence[Sequence[str]]) -> Figure:
    """F1 by the length of the answer in words; `answers` are the reference answers in the order of the data."""
    return _f1_by_group(measurements, [answer_length(one) for one in answers], ANSWER_LENGTHS, "words of the answer")


def question_word_figure(measurements: Sequence[Measurements], questions: Sequence[str]) -> Figure:
    """F1 by the question word; `questions` are in the order of the data."""
    return _f1_by_group(measurements, [question_word(one) for one in questions], QUESTION_WORDS, "question word")


def calibration_figure(measurements: Sequence[Measurements]) -> Figure:
    """Share of exact matches against the score, and a histogram of the scores."""
    drawn = {one.name: (one.examples, style) for one, style in zip(measurements, _styles(measurements), strict=True)}
    return _reliability_figure(drawn)


def reliability_figure(results: Mapping[str, Sequence[ExampleResult]]) -> Figure:
    """As `calibration_figure`, of the same questions answered by one reader in several states.

    Args:
        results: Name of a state, such as "before" -> its answers.
    """
    styles: list[dict[str, Any]] = [
        {"color": colour, "marker": marker, "markersize": 6}
        for colour, marker in zip(_COLOURS, itertools.cycle("so^D"), strict=False)
    ]
    return _reliability_figure({name: (one, styles[number]) for number, (name, one) in enumerate(results.items())})


def _reliability_figure(drawn: Mapping[str, tuple[Sequence[ExampleResult], dict[str, Any]]]) -> Figure:
    figure = _empty_figure(entries=len(drawn), height=_HEIGHT + 1.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    edges = np.linspace(0, 1, 11)
    for name, (results, style) in drawn.items():
        bins = reliability(results)
        line = {"color": style["color"], "linewidth": 1.2}
        upper.plot(
            [x.score for x in bins],
            [x.exact for x in bins],
            label=_label(name),
            **line | style | {"markersize": 4.5},
        )
        lower.hist([result.score for result in results], edges, histtype="step", **line)
    upper.set_ylim(-0.03, 1.03)
    upper.set_ylabel("exact matches")
    lower.set_xlim(0, 1)
    lower.set_ylabel("answers")
    lower.set_xlabel("score")
    for axes in (upper, lower):
        _tidy(axes)
    _legend(figure)
    return figure


def _against_f1(measurements: Sequence[Measurements], cost: Callable[[Measurements], float], label: str) -> Figure:
    figure, axes = _figure(entries=len(measurements))
    costs = [cost(one) for one in measurements]
    for one, x, style in zip(measurements, costs, _styles(measurements), strict=True):
        error = 100 * _standard_error([result.f1 for result in one.examples])
        axes.errorbar(x, one.metrics["f1"], error, label=_label(one.name), linestyle="", elinewidth=1, **style)
        if one.role == "teacher":
            axes.axhline(one.metrics["f1"], color=style["color"], linewidth=0.8, linestyle=":")
    if max(costs) > 8 * min(costs) > 0:
        axes.set_xscale("log")
        axes.margins(x=0.12)
    else:
        axes.set_xlim(0, 1.12 * max(costs) or 1)
    axes.set_xlabel(label)
    axes.set_ylabel("F1 (%)")
    _legend(figure)
    return figure


def _f1_by_group(
    measurements: Sequence[Measurements], group_of: Sequence[str], groups: Sequence[str], label: str
) -> Figure:
    """One row per group and one marker per reader, which stays readable with many readers, unlike bars."""
    members = {group: [row for row, own in enumerate(group_of) if own == group] for group in groups}
    present = [group for group in groups if members[group]]
    spread = 0.62
    figure, axes = _figure(entries=len(measurements), height=0.9 + len(present) * max(0.3, 0.1 * len(measurements)))
    for number, (one, style) in enumerate(zip(measurements, _styles(measurements), strict=True)):
        f1 = [[100 * one.examples[row].f1 for row in members[group]] for group in present]
        shift = spread * ((number + 0.5) / len(measurements) - 0.5)
        axes.errorbar(
            [_mean(values) for values in f1],
            [row + shift for row in range(len(present))],
            xerr=[_standard_error(values) for values in f1],
            label=_label(one.name),
            linestyle="",
            elinewidth=1,
            **style | {"markersize": 4.5},
        )
    for row in range(1, len(present)):
        axes.axhline(row - 0.5, color="#dddddd", linewidth=0.8)
    axes.set_yticks(range(len(present)), [f"{group} ({len(members[group])})" for group in present])
    axes.set_ylim(len(present) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("F1 (%)")
    axes.set_ylabel(f"{label} (questions)")
    _legend(figure)
    return figure


def _figure(entries: int, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = _empty_figure(entries, height)
    axes = figure.subplots()
    _tidy(axes)
    return figure, axes


def _empty_figure(entries: int, height: float) -> Figure:
    """A figure with its own canvas, independent of pyplot, and additional height for the entries of its legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height + 0.21 * entries), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_POINTS)
    axes.xaxis.label.set_fontsize(_POINTS)
    axes.yaxis.label.set_fontsize(_POINTS)


def _legend(figure: Figure) -> None:
    """A legend above the axes with one entry per line, because long names do not fit next to each other."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        fontsize=_POINTS,
        frameon=False,
        labelspacing=0.25,
        borderaxespad=0.1,
        handlelength=1.6,
    )


def _styles(measurements: Sequence[Measurements]) -> list[dict[str, Any]]:
    """Colour and marker of each reader, the same in all figures of the same measurements."""
    styles = []
    teachers = others = 0
    for one in measurements:
        if one.role == "teacher":
            colour = _TEACHER_COLOURS[teachers % len(_TEACHER_COLOURS)]
            teachers += 1
        else:
            colour = _COLOURS[others % len(_COLOURS)]
            others += 1
        styles.append({"color": colour, "marker": _MARKERS[one.role], "markersize": 6})
    return styles


def _label(name: str) -> str:
    """A name as matplotlib draws it: not as a formula, not hidden in the legend, and shortened to fit the figure."""
    text = " ".join(name.split())
    if len(text) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        text = f"{text[:half]}…{text[-half + 1 :]}"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
