"""Reports on one or several runs: an HTML page without scripts or links, its figures, and its numbers as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from haystack_distill.data.squad.load import content_hash
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import Measurements
from haystack_distill.evaluation.reliability import calibration_error
from haystack_distill.reporting import plots
from haystack_distill.reporting.page import figure_of, page_of, png_of
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.files import expand_user, require_writable
from haystack_distill.utils.model_files import read_json_object

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "report.json"

_FORMAT = 1  # increase it when report.json changes
_EXCERPT = 240  # characters of a context in a table
_DIFFERENCES = 40  # questions in the table of differences
_ROLE_NAMES = {"teacher": "teacher", "labels": "student, labels only", "distilled": "student, distilled", "other": ""}


def write_report(
    directory: str | Path,
    measurements: Sequence[Measurements],
    examples: datasets.Dataset,
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    title: str = "Distillation report",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html`, its figures as `report/*.png`, and `report.json`, which `compare_reports` reads.

    Each file is written atomically, the page last. Figures of an earlier report that this one lacks are deleted.

    Args:
        directory: The directory to write to; it is created if necessary.
        measurements: The readers, all measured on `examples`; the others are compared with the first one that has the
            role "teacher", or with the first one.
        examples: The data, as `data.squad.load.load_examples` returns it.
        histories: Name of a run -> its log (`RunResult.history`); each log that contains losses gets a figure.
        title: The heading of the page.
        facts: Further information about the run, name -> value: data, settings, versions.

    Returns:
        The path of `report.html`, which quotes questions, answers and contexts, as does `report.json`.

    Raises:
        DistilError: There are no measurements, two have the same name, or one was made on other data than
            `examples`.
    """
    data = content_hash(examples)
    for one in measurements:
        if one.data != data:
            raise DistilError(f"{one.name!r} was measured on other data than the given examples: measure it on these")
    content = {
        "data": {"questions": len(examples), "sha256": data},
        "runs": {"": {name: str(value) for name, value in (facts or {}).items()}},
        "histories": {name: [dict(line) for line in history] for name, history in histories.items()},
        "examples": [_example(row) for row in examples],  # type: ignore[arg-type]
    }
    return _write(expand_user(directory), title, measurements, content)


def compare_reports(directories: Sequence[str | Path], output: str | Path) -> Path:
    """Write one report on several runs to the directory `output`, from their `report.json`; no model runs.

    Readers and logs are named "name (run)", after the directory of the run. A teacher that several runs share appears
    once.

    Returns:
        The path of the new `report.html`.

    Raises:
        DistilError: There are fewer than two runs, a `report.json` cannot be read, the runs were measured on different
            data, or `output` is one of them or holds the report of another.
    """
    paths = [expand_user(directory) for directory in directories]
    require_writable(expand_user(output))
    if len({path.resolve() for path in paths}) != len(paths) or len(paths) < 2:
        raise DistilError(
            "a comparison needs at least two different runs: give another one, or open the report.html of the run"
        )
    output = expand_user(output)
    if output.resolve() in [path.resolve() for path in paths]:
        raise DistilError(f"{output} is one of the compared runs: write the comparison to another directory")
    if "" in (read_json_object(output, REPORT_FILE) or {}).get("runs", {}):
        raise DistilError(f"{output} holds the report of a run: write the comparison to another directory")
    contents = [_read(path) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if content["data"]["sha256"] != contents[0]["data"]["sha256"]:
            raise DistilError(
                f"{path} was measured on other data than {paths[0]} ({_questions(content)} and "
                f"{_questions(contents[0])}), so their scores cannot be compared: measure both on the same dev data"
            )
    merged: list[Measurements] = []
    facts: dict[str, dict[str, str]] = {}
    histories: dict[str, list[dict[str, float]]] = {}
    for label, content in zip(short_names(paths), contents, strict=True):
        for run, values in content["runs"].items():
            facts[_run_label(run, label)] = values
        for name, history in content["histories"].items():
            histories[f"{name} ({label})"] = history
        for one in content["measurements"]:
            if not (one.role == "teacher" and any(_same_teacher(one, other) for other in merged)):
                merged.append(one if one.role == "teacher" else replace(one, name=f"{one.name} ({label})"))
    content = {
        "data": contents[0]["data"],
        "runs": facts,
        "histories": histories,
        "examples": contents[0]["examples"],
    }
    return _write(output, f"Comparison of {len(paths)} runs", _with_unique_names(merged), content)


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an example for tables and figures, with an excerpt of the context around the answer."""
    start = row["answers"]["answer_start"][0] if row["answers"]["text"] else 0
    first = max(0, start - _EXCERPT // 2)
    excerpt = row["context"][first : first + _EXCERPT]
    before, after = "…" if first else "", "…" if first + _EXCERPT < len(row["context"]) else ""
    answers = list(row["answers"]["text"])
    return {"id": row["id"], "question": row["question"], "answers": answers, "excerpt": f"{before}{excerpt}{after}"}


def _read(directory: Path) -> dict[str, Any]:
    path = directory / REPORT_FILE
    remedy = "give OUTPUT_DIR/reader of a recipe with dev_data or dev_split, which writes it"
    content = read_json_object(directory, REPORT_FILE, remedy)
    if content is None:
        raise DistilError(f"{directory} holds no {REPORT_FILE}: {remedy}")
    if content.get("format") != _FORMAT:
        raise DistilError(f"{path} is not a report of this version of haystack-distill: {remedy}")
    if not _is_complete(content):
        raise DistilError(f"{path} lacks parts of a report: {remedy}")
    return content | {"measurements": [Measurements.from_json(one) for one in content["measurements"]]}


def _is_complete(content: Mapping[str, Any]) -> bool:
    """Whether a report has all its parts, with the right types."""
    parts = {"data": dict, "runs": dict, "histories": dict, "examples": list, "measurements": list}
    if not all(isinstance(content.get(name), kind) for name, kind in parts.items()):
        return False
    wanted = {"id", "question", "answers", "excerpt"}
    examples = all(isinstance(example, dict) and wanted <= example.keys() for example in content["examples"])
    return examples and {"questions", "sha256"} <= content["data"].keys()


def short_names(paths: Sequence[Path]) -> list[str]:
    """The names of the directories, with as many parents as it takes to make them unique."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts))):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path.resolve()) for path in paths]


def _run_label(run: str, label: str) -> str:
    return f"{run} ({label})" if run else label


def _same_teacher(one: Measurements, other: Measurements) -> bool:
    """Whether two measurements are of the same teacher: equal size and answers, whatever the latency."""
    return other.role == "teacher" and (one.parameters, one.examples) == (other.parameters, other.examples)


def _with_unique_names(measurements: Sequence[Measurements]) -> list[Measurements]:
    """The measurements, with numbers added to repeated names (different teachers that are all called "teacher")."""
    seen: dict[str, int] = {}
    renamed = []
    for one in measurements:
        seen[one.name] = seen.get(one.name, 0) + 1
        renamed.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name} {seen[one.name]}"))
    return renamed


def _questions(content: Mapping[str, Any]) -> str:
    return f"{content['data']['questions']} questions, SHA-256 {content['data']['sha256'][:12]}"


def _write(directory: Path, title: str, measurements: Sequence[Measurements], content: dict[str, Any]) -> Path:
    if not measurements:
        raise DistilError(
            "there is nothing to report: measure at least one reader (evaluation.measurements.measure_reader)"
        )
    if len({one.name for one in measurements}) != len(measurements):
        raise DistilError("two readers have the same name: give each its own")
    figures = _figures(measurements, content)
    images = {name: png_of(figure) for name, (_, _, figure) in figures.items()}
    body = [f"<h1>{escape(title)}</h1>", _summary(measurements), _results(measurements, content), "<h2>Figures</h2>"]
    rendered = [figure_of(heading, caption, images[name]) for name, (heading, caption, _) in figures.items()]
    body += ['<div class="figures">', *rendered, "</div>", _differences(measurements, content), _facts(content)]
    page = page_of(title, body)

    folder = directory / "report"
    for stale in _previous_figures(directory) - set(images):
        (folder / stale).unlink(missing_ok=True)
    for name, image in images.items():
        write_atomically(folder / name, lambda temporary, image=image: temporary.write_bytes(image))  # type: ignore[misc]
    head = {"format": _FORMAT, "title": title, "figures": list(images)}
    write_json(directory / REPORT_FILE, head | content | {"measurements": [one.to_json() for one in measurements]})
    write_atomically(directory / "report.html", lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return directory / "report.html"


def _previous_figures(directory: Path) -> set[str]:
    """Names of the figures of an existing report, the only files that may be deleted."""
    try:
        names = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and re.fullmatch(r"[\w-]+\.png", name)}


def _figures(measurements: Sequence[Measurements], content: Mapping[str, Any]) -> dict[str, tuple[str, str, Figure]]:
    """The figures of a report: file name -> heading, caption, figure."""
    bars = "Lines: one standard error."
    examples = content["examples"]
    answers = [example["answers"] for example in examples]
    questions = [example["question"] for example in examples]
    timed = _range({one.timed_questions for one in measurements})
    figures = {
        "size-f1.png": ("Size and F1", f"Up and left is better. {bars}", plots.size_figure(measurements)),
        "latency-f1.png": (
            "Time and F1",
            f"One question at a time, the median of {timed} questions. {bars}",
            plots.latency_figure(measurements),
        ),
        "answer-length.png": (
            "F1 by length of the answer",
            f"Words of the reference answer, in brackets the number of questions. {bars}",
            plots.answer_length_figure(measurements, answers),
        ),
        "question-word.png": (
            "F1 by question word",
            f"The first such word of the question, in brackets the number of questions. {bars}",
            plots.question_word_figure(measurements, questions),
        ),
        "calibration.png": (
            "Calibration of the score",
            "Share of exact matches by score (grey line: perfect calibration), and the number of answers.",
            plots.calibration_figure(measurements),
        ),
    }
    drawn = [(name, history) for name, history in content["histories"].items() if plots.has_losses(history)]
    for number, (name, history) in enumerate(drawn, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        caption = "Means since the previous log entry: the components without their weights, the sum with them."
        figures[f"loss-{number}-{slug}.png"] = (f"Loss: {name}", caption, plots.loss_figure(history))
    return figures


def _baseline(measurements: Sequence[Measurements]) -> Measurements:
    return next((one for one in measurements if one.role == "teacher"), measurements[0])


def _summary(measurements: Sequence[Measurements]) -> str:
    """A sentence for each distilled student, if there is a teacher to compare it with."""
    teacher = _baseline(measurements)
    labels = [one for one in measurements if one.role == "labels"]
    sentences = []
    for one in measurements:
        if teacher.role != "teacher" or one.role != "distilled" or not teacher.metrics["f1"]:
            continue
        sentence = (
            f"<b>{escape(one.name)}</b> keeps {100 * one.metrics['f1'] / teacher.metrics['f1']:.1f} % of the teacher's "
            f"F1 with {100 * one.parameters / teacher.parameters:.0f} % of its parameters and answers "
            f"{teacher.milliseconds / one.milliseconds:.1f} times as fast"
        )
        if len(labels) == 1:
            gain = one.metrics["f1"] - labels[0].metrics["f1"]
            sentence += (
                f"; training on labels alone gives {abs(gain):.1f} points of F1 {'less' if gain > 0 else 'more'}"
            )
        sentences.append(f"<p>{sentence}.</p>")
    return "\n".join(sentences)


def _results(measurements: Sequence[Measurements], content: Mapping[str, Any]) -> str:
    split = all("HasAns_f1" in one.metrics and "NoAns_f1" in one.metrics for one in measurements)
    header = ["reader", "parameters", "MB", "EM", "F1"]
    header += ["F1, answerable", "F1, unanswerable"] if split else []
    header += ["ms per question", "calibration error"]
    rows = []
    for one in measurements:
        scores = [one.metrics[key] for key in ("exact", "f1", *(("HasAns_f1", "NoAns_f1") if split else ()))]
        numbers = [f"{one.parameters / 1e6:.1f} M", f"{one.megabytes:.0f}", *(f"{score:.1f}" for score in scores)]
        numbers += [f"{one.milliseconds:.1f}", f"{calibration_error(one.examples):.3f}"]
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        role = _ROLE_NAMES[one.role]
        under = [one.shape, *([] if role in one.name else [role])]
        notes = "".join(f"<small>{escape(note)}</small>" for note in under if note)
        rows.append(f'<tr><th scope="row">{escape(one.name)}{notes}</th>{cells}</tr>')
    titles = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{title}</th>' for number, title in enumerate(header)
    )
    devices = ", ".join(sorted({f"({one.device})" for one in measurements}))
    return (
        f'<h2>Results</h2>\n<div class="scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + f'</tbody></table></div>\n<p class="note">Measured on {content["data"]["questions"]} questions. EM (exact '
        "match) and F1 in per cent, as SQuAD's script computes them. ms per question: one question at a time, the "
        f"median of {_range({one.timed_questions for one in measurements})} questions after a warm-up "
        f"{escape(devices)}. Calibration error: the mean gap between score and share of exact matches, 0 is best.</p>"
    )


def _differences(measurements: Sequence[Measurements], content: Mapping[str, Any]) -> str:
    """The questions on which students and baseline differ in F1, the largest differences first."""
    baseline = _baseline(measurements)
    others = [one for one in measurements if one.role == "distilled" and one is not baseline]
    others = others or [one for one in measurements if one is not baseline]
    if not others:
        return ""
    gaps = [
        max(abs(one.examples[row].f1 - result.f1) for one in others) for row, result in enumerate(baseline.examples)
    ]
    differing = sorted((row for row, gap in enumerate(gaps) if gap > 0), key=lambda row: (-gaps[row], row))
    heading = (
        f"<h2>Where {escape(_enumeration([one.name for one in others]))} and {escape(baseline.name)} differ</h2>\n"
    )
    counts = "; ".join(
        f"{one.name}: better on {sum(a.f1 > b.f1 for a, b in pairs)}, worse on {sum(a.f1 < b.f1 for a, b in pairs)}"
        for one in others
        for pairs in [list(zip(one.examples, baseline.examples, strict=True))]
    )
    note = f'<p class="note">Questions on which F1 differs from that of {escape(baseline.name)}: {escape(counts)}.'
    if not differing:
        return f"{heading}{note}</p>"
    chosen = differing[:_DIFFERENCES]
    note += f" The table has {len(chosen)} of these {len(differing)}, the largest differences first.</p>\n"
    columns = ["question", "reference", *(one.name for one in (baseline, *others)), "context, around the answer"]
    titles = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = []
    for row in chosen:
        example = content["examples"][row]
        reference = " / ".join(dict.fromkeys(example["answers"])) or "(no answer)"
        cells = [escape(example["question"]), escape(reference)]
        for one in (baseline, *others):
            result = one.examples[row]
            score = f"<small>F1 {100 * result.f1:.0f}, score {result.score:.2f}</small>"
            cells.append(f"{escape(result.text or '(no answer)')}{score}")
        cells.append(f"<small>{escape(example['excerpt'])}</small>")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    table = f'<table class="texts"><thead><tr>{titles}</tr></thead>\n<tbody>\n' + "\n".join(rows) + "</tbody></table>"
    return f'{heading}{note}<div class="scroll" tabindex="0">{table}</div>'


def _facts(content: Mapping[str, Any]) -> str:
    """Facts about the runs, with one column per run."""
    runs = content["runs"]
    names = list(dict.fromkeys(name for facts in runs.values() for name in facts))
    if not names:
        return ""
    head = ""
    if len(runs) > 1:
        titles = "".join(f'<th scope="col">{escape(run)}</th>' for run in runs)
        head = f"<thead><tr><td></td>{titles}</tr></thead>\n"
    rows = []
    for name in names:
        cells = "".join(f"<td>{escape(facts.get(name, ''))}</td>" for facts in runs.values())
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    table = f"<table>{head}<tbody>\n" + "\n".join(rows) + "</tbody></table>"
    return f'<h2>How it was made</h2>\n<div class="scroll" tabindex="0">{table}</div>'


def _enumeration(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{len(names)} readers"


def _range(numbers: set[int]) -> str:
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
