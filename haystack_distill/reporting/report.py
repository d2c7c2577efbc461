"""The report on a run, and on several: one HTML page without scripts or links, its figures, and its numbers as JSON."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import datasets
from matplotlib.figure import Figure

from haystack_distill.data.squad.load import content_hash
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import Measurements
from haystack_distill.reporting import plots
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.files import expand_user, require_writable

REPORT_FILE = "report.json"

_FORMAT = 1  # raise it when report.json changes
_EXCERPT = 240  # characters of a context that a table shows
_DIFFERENCES = 40  # questions in the table of differences
_ROLE_NAMES = {"teacher": "teacher", "labels": "student, labels only", "distilled": "student, distilled", "other": ""}

# A policy that allows nothing but the page's own style and figures: even a fault in here could load nothing.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1180px; padding: 1rem 1.25rem 3rem; background: #fff; color: #1c1c1c;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }}
h2 {{ font-size: 1.2rem; margin: 2.25rem 0 .75rem; }}
p {{ max-width: 46rem; margin: .5rem 0; }}
.note, figcaption {{ color: #555; font-size: .875rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #ddd; }}
thead th {{ border-bottom-color: #888; }}
td.number, th.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
table.texts {{ min-width: 52rem; overflow-wrap: anywhere; }}
table.texts td {{ min-width: 8rem; }}
table.texts td:last-child {{ min-width: 18rem; }}
small {{ display: block; color: #555; font-weight: normal; }}
th[scope=row] {{ min-width: 8rem; }}
.figures {{ display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.75rem 2.5rem; }}
@media (min-width: 800px) {{ .figures {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }} }}
figure {{ margin: 0; max-width: 540px; }}
figure h3 {{ font-size: 1rem; margin: 0 0 .25rem; }}
figure img {{ display: block; width: 100%; max-width: 100%; height: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(
    directory: str | Path,
    measurements: Sequence[Measurements],
    examples: datasets.Dataset,
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    title: str = "Distillation report",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html`, its figures as `report/*.png`, and `report.json`, from which runs are compared.

    Each file is written aside and renamed, the page last; figures of an earlier report that this one lacks go.

    Args:
        directory: Where to; made where it is not there.
        measurements: The readers, all measured on `examples`; the first with the role "teacher" (else the first) is
            what the others are compared with.
        examples: The data, as `data.squad.load.load_examples` returns it.
        histories: What was taught -> the run's log (`RunResult.history`); one figure each, where it holds losses.
        title: The page's heading.
        facts: What else to say about the run, name -> value: data, settings, versions.

    Returns:
        The path of `report.html`. Like `report.json` it quotes questions, answers and contexts.

    Raises:
        DistilError: No measurements, two of one name, or some made on other data than `examples`.
    """
    data = content_hash(examples)
    for one in measurements:
        if one.data != data:
            raise DistilError(f"{one.name!r} was measured on other data than the examples given: measure it on these")
    content = {
        "data": {"questions": len(examples), "sha256": data},
        "runs": {"": {name: str(value) for name, value in (facts or {}).items()}},
        "histories": {name: [dict(line) for line in history] for name, history in histories.items()},
        "examples": [_example(row) for row in examples],  # type: ignore[arg-type]
    }
    return _write(expand_user(directory), title, measurements, content)


def compare_reports(directories: Sequence[str | Path], output: str | Path) -> Path:
    """Write one report on several runs to the directory `output`, from their `report.json`; no model is run.

    Readers and logs are called "name (run)", the run being its directory's name. A teacher that several runs share
    comes once.

    Returns:
        The path of the new `report.html`.

    Raises:
        DistilError: Fewer than two runs, one without a `report.json` that can be read, runs measured on different
            data, or `output` is one of them.
    """
    paths = [expand_user(directory) for directory in directories]
    require_writable(expand_user(output))
    if len({path.resolve() for path in paths}) != len(paths) or len(paths) < 2:
        raise DistilError("a comparison needs at least two different runs; one run's own report is its report.html")
    output = expand_user(output)
    if output.resolve() in [path.resolve() for path in paths]:
        raise DistilError(f"{output} holds a report that is compared here: write the comparison to another directory")
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
    for label, content in zip(_labels(paths), contents, strict=True):
        for run, values in content["runs"].items():
            facts[_joined(run, label)] = values
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
    return _write(output, f"Comparison of {len(paths)} runs", _told_apart(merged), content)


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables and figures need of an example; of its context only the surroundings of the answer."""
    start = row["answers"]["answer_start"][0] if row["answers"]["text"] else 0
    first = max(0, start - _EXCERPT // 2)
    excerpt = row["context"][first : first + _EXCERPT]
    before, after = "…" if first else "", "…" if first + _EXCERPT < len(row["context"]) else ""
    answers = list(row["answers"]["text"])
    return {"id": row["id"], "question": row["question"], "answers": answers, "excerpt": f"{before}{excerpt}{after}"}


def _read(directory: Path) -> dict[str, Any]:
    path = directory / REPORT_FILE
    remedy = "write the run's report first (a run with dev data writes it)"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DistilError(
            f"{directory} holds no {REPORT_FILE} that can be read ({error.strerror}): {remedy}"
        ) from error
    except ValueError as error:
        raise DistilError(f"{path} is broken ({error}): {remedy}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DistilError(f"{path} is not a report of this version of haystack-distill: {remedy}")
    if not _is_whole(content):
        raise DistilError(f"{path} lacks what a report is made of: {remedy}")
    return content | {"measurements": [Measurements.from_json(one) for one in content["measurements"]]}


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Whether the parts of a report are there, each as what it should be."""
    parts = {"data": dict, "runs": dict, "histories": dict, "examples": list, "measurements": list}
    if not all(isinstance(content.get(name), kind) for name, kind in parts.items()):
        return False
    wanted = {"id", "question", "answers", "excerpt"}
    examples = all(isinstance(example, dict) and wanted <= example.keys() for example in content["examples"])
    return examples and {"questions", "sha256"} <= content["data"].keys()


def _labels(paths: Sequence[Path]) -> list[str]:
    """The directories' names, with as many parents as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts))):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path.resolve()) for path in paths]


def _joined(run: str, label: str) -> str:
    return f"{run} ({label})" if run else label


def _same_teacher(one: Measurements, other: Measurements) -> bool:
    """Whether it says the same to every question; its time may differ."""
    return other.role == "teacher" and (one.parameters, one.examples) == (other.parameters, other.examples)


def _told_apart(measurements: Sequence[Measurements]) -> list[Measurements]:
    """The measurements, with numbers behind names that several bear (different teachers, all called "teacher")."""
    seen: dict[str, int] = {}
    apart = []
    for one in measurements:
        seen[one.name] = seen.get(one.name, 0) + 1
        apart.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name} {seen[one.name]}"))
    return apart


def _questions(content: Mapping[str, Any]) -> str:
    return f"{content['data']['questions']} questions, SHA-256 {content['data']['sha256'][:12]}"


def _write(directory: Path, title: str, measurements: Sequence[Measurements], content: dict[str, Any]) -> Path:
    if not measurements:
        raise DistilError("there is nothing to report: measure at least one reader (measurements.measure_reader)")
    if len({one.name for one in measurements}) != len(measurements):
        raise DistilError("two readers have the same name: give each one of its own")
    figures = _figures(measurements, content)
    images = {name: _png(figure) for name, (_, _, figure) in figures.items()}
    body = [f"<h1>{escape(title)}</h1>", _summary(measurements), _results(measurements, content), "<h2>Figures</h2>"]
    shown = [_figure(heading, caption, images[name]) for name, (heading, caption, _) in figures.items()]
    body += ['<div class="figures">', *shown, "</div>", _differences(measurements, content), _facts(content)]
    page = _PAGE.format(title=escape(title), body="\n".join(part for part in body if part))

    folder = directory / "report"
    for stale in _figures_before(directory) - set(images):
        (folder / stale).unlink(missing_ok=True)
    for name, image in images.items():
        write_atomically(folder / name, lambda aside, image=image: aside.write_bytes(image))  # type: ignore[misc]
    head = {"format": _FORMAT, "title": title, "figures": list(images)}
    write_json(directory / REPORT_FILE, head | content | {"measurements": [one.to_json() for one in measurements]})
    write_atomically(directory / "report.html", lambda aside: aside.write_text(page, encoding="utf-8"))
    return directory / "report.html"


def _figures_before(directory: Path) -> set[str]:
    """Names of the figures of the report that is there; only those may go, others' files are not ours to remove."""
    try:
        names = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and re.fullmatch(r"[\w-]+\.png", name)}


def _figures(measurements: Sequence[Measurements], content: Mapping[str, Any]) -> dict[str, tuple[str, str, Figure]]:
    """File name -> heading, caption, figure."""
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
            "How often answers of a score are exactly right (grey line: as often as it says), and how many have it.",
            plots.calibration_figure(measurements),
        ),
    }
    drawn = [(name, history) for name, history in content["histories"].items() if plots.has_losses(history)]
    for number, (name, history) in enumerate(drawn, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        caption = "Means since the line of the log before: the parts without their weights, the sum with them."
        figures[f"loss-{number}-{slug}.png"] = (f"Loss: {name}", caption, plots.loss_figure(history))
    return figures


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same figure gives the same bytes
    return buffer.getvalue()


def _figure(heading: str, caption: str, image: bytes) -> str:
    width, height = (int.from_bytes(image[place : place + 4], "big") for place in (16, 20))  # PNG's first chunk
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<figure><h3>{escape(heading)}</h3><img alt="{escape(heading)}. {escape(caption)}" width="{width}" '
        f'height="{height}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _baseline(measurements: Sequence[Measurements]) -> Measurements:
    return next((one for one in measurements if one.role == "teacher"), measurements[0])


def _summary(measurements: Sequence[Measurements]) -> str:
    """A sentence for each distilled student, where there is a teacher to compare with."""
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
    header += ["ms a question", "calibration error"]
    rows = []
    for one in measurements:
        scores = [one.metrics[key] for key in ("exact", "f1", *(("HasAns_f1", "NoAns_f1") if split else ()))]
        numbers = [f"{one.parameters / 1e6:.1f} M", f"{one.megabytes:.0f}", *(f"{score:.1f}" for score in scores)]
        numbers += [f"{one.milliseconds:.1f}", f"{plots.calibration_error(one.examples):.3f}"]
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        role = _ROLE_NAMES[one.role]
        role = "" if role in one.name else f"<small>{role}</small>"
        rows.append(f'<tr><th scope="row">{escape(one.name)}{role}</th>{cells}</tr>')
    titles = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{title}</th>' for number, title in enumerate(header)
    )
    devices = ", ".join(sorted({f"({one.device})" for one in measurements}))
    return (
        f'<h2>Results</h2>\n<div class="scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + f'</tbody></table></div>\n<p class="note">Measured on {content["data"]["questions"]} questions. EM (exact '
        "match) and F1 in per cent, as SQuAD's script computes them. ms a question: one question at a time, the median "
        f"of {_range({one.timed_questions for one in measurements})} questions after a warm-up {escape(devices)}. "
        "Calibration error: the mean distance of score and share of exact matches, 0 is best.</p>"
    )


def _differences(measurements: Sequence[Measurements], content: Mapping[str, Any]) -> str:
    """The questions where a student fares most differently from the baseline, the largest differences first."""
    baseline = _baseline(measurements)
    others = [one for one in measurements if one.role == "distilled" and one is not baseline]
    others = others or [one for one in measurements if one is not baseline]
    if not others:
        return ""
    gaps = [
        max(abs(one.examples[row].f1 - result.f1) for one in others) for row, result in enumerate(baseline.examples)
    ]
    differing = sorted((row for row, gap in enumerate(gaps) if gap > 0), key=lambda row: (-gaps[row], row))
    heading = f"<h2>Where {escape(_listed([one.name for one in others]))} and {escape(baseline.name)} differ</h2>\n"
    counts = "; ".join(
        f"{one.name}: better on {sum(a.f1 > b.f1 for a, b in pairs)}, worse on {sum(a.f1 < b.f1 for a, b in pairs)}"
        for one in others
        for pairs in [list(zip(one.examples, baseline.examples, strict=True))]
    )
    note = f'<p class="note">Questions on which F1 differs from that of {escape(baseline.name)}: {escape(counts)}.'
    if not differing:
        return f"{heading}{note}</p>"
    chosen = differing[:_DIFFERENCES]
    note += f" Shown: {len(chosen)} of {len(differing)}, the largest differences first.</p>\n"
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
    """How the runs were made, a column a run."""
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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{len(names)} readers"


def _range(numbers: set[int]) -> str:
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
