"""The page on a calibration with its reliability diagram, its numbers as JSON, and its section of the model card."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from haystack_distill.evaluation.calibration import Calibration
from haystack_distill.models.calibration import calibration_record
from haystack_distill.reporting import plots
from haystack_distill.reporting.page import figure_of, page_of, png_of, table_of
from haystack_distill.utils.atomic import write_atomically, write_json

PAGE_FILE = "calibration.html"
NUMBERS_FILE = "calibration.json"


def summary_of(calibration: Calibration) -> dict[str, Any]:
    """The numbers of a calibration, as JSON holds them; without the answers."""
    return {
        "temperature": calibration.temperature,
        "total_temperature": calibration_record(calibration.reader.model.config)["temperature"],
        "no_answer_threshold": calibration.no_answer_threshold,
        "threshold_for": calibration.threshold_for,
        "questions": {"fitted": calibration.fitted_questions, "judged": len(calibration.after.examples)},
        "changed_answers": calibration.changed_answers,
        **{
            name: {"calibration_error": judged.calibration_error, **judged.metrics}
            for name, judged in (("before", calibration.before), ("after", calibration.after))
        },
    }


def write_calibration(directory: Path, calibration: Calibration, *, model: str, data: Sequence[str]) -> Path:
    """Write `calibration.html` and `calibration.json` to the directory of a calibrated reader.

    Each file is written atomically, the page last. Neither quotes the data.

    Args:
        directory: The directory of the calibrated reader.
        calibration: The calibration.
        model: The name of the reader that was calibrated.
        data: The names of the data that it was calibrated on.

    Returns:
        The path of the page.
    """
    summary = summary_of(calibration)
    states = {"before": calibration.before, "after": calibration.after}
    names = [name for name in ("exact", "f1", "HasAns_f1", "NoAns_f1") if name in calibration.after.metrics]
    rows = [
        [state, f"{judged.calibration_error:.3f}", *(f"{judged.metrics[name]:.2f}" for name in names)]
        for state, judged in states.items()
    ]
    titles = {"exact": "EM", "f1": "F1", "HasAns_f1": "F1, answerable", "NoAns_f1": "F1, unanswerable"}
    figure = plots.reliability_figure({name: judged.examples for name, judged in states.items()})
    questions = summary["questions"]
    note = (
        f"Temperature and threshold were fitted on {questions['fitted']} questions of {', '.join(data)}, and judged "
        f"here on {questions['judged']} others, on articles of their own. Calibration error: the mean gap between "
        "score and share of exact matches, 0 is best. EM (exact match) and F1 in per cent."
    )
    title = f"Calibration of {model}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(calibration_section(summary))}</p>",
        "<h2>Results</h2>",
        table_of(["", "calibration error", *(titles[name] for name in names)], rows),
        f'<p class="note">{escape(note)}</p>',
        '<div class="figures">',
        figure_of(
            "Reliability of the score",
            "Share of exact matches by score (grey line: perfect calibration), and the number of answers.",
            png_of(figure),
        ),
        "</div>",
    ]
    write_json(directory / NUMBERS_FILE, {"model": model, "data": list(data)} | summary)
    page = page_of(title, body)
    write_atomically(directory / PAGE_FILE, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return directory / PAGE_FILE


def calibration_section(summary: dict[str, Any]) -> str:
    """The section of a model card: what was done and what came of it.

    Args:
        summary: What `summary_of` returns.
    """
    total = summary["total_temperature"]
    earlier = "" if total == summary["temperature"] else f" ({total:.4g} with those of earlier calibrations)"
    before, after = summary["before"]["calibration_error"], summary["after"]["calibration_error"]
    sentence = (
        f"Start and end logits were divided by a temperature of {summary['temperature']:.4g}{earlier}, in the weights "
        f"of the head: on {summary['questions']['judged']} questions that it was not fitted on, the expected "
        f"calibration error of the score went from {before:.3f} to {after:.3f}."
    )
    threshold = summary["no_answer_threshold"]
    if summary["threshold_for"] is not None:
        measure = {"f1": "F1", "exact": "exact match"}[summary["threshold_for"]]
        sentence += f" The no-answer threshold that is best for {measure}, {threshold:.4g}, is stored in config.json."
        sentence += " Results of this reader elsewhere in this card were measured before that."
    elif threshold:
        sentence += f" The no-answer threshold of {threshold:.4g} in config.json is the earlier one, divided likewise."
    return sentence
