"""The table, the charts and the page of a comparison, from the records of its students and teachers."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from haystack_distill.errors import DistilError
from haystack_distill.evaluation.bootstrap import paired_bootstrap
from haystack_distill.reporting import plots
from haystack_distill.reporting.page import figure_of, page_of, png_of
from haystack_distill.utils.atomic import write_atomically, write_json

COMPARISON_FILE = "comparison.json"
PAGE_FILE = "comparison.html"
CHART_FILE = "comparison.png"

_FORMAT = 1  # increase it when comparison.json changes
_WHAT = {  # what arms of one table have in common, in messages
    "teacher": "teacher",
    "student": "student",
    "data": "training questions",
    "dev_data": "dev questions",
    "windows": "windows",
    "precision": "precision",
    "device": "device",
    "steps": "optimiser steps",
}
_NAMES = {"teacher": "teacher", "teacher-int8": "teacher in int8 (ONNX Runtime)"}

Record = Mapping[str, Any]


def write_comparison(
    directory: Path,
    students: Sequence[Record],
    teachers: Sequence[Record],
    *,
    order: Sequence[str],
    baseline: str,
    timing: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `comparison.html`, `comparison.png` and `comparison.json`.

    Args:
        directory: Where they go.
        students: The records of finished students, as `recipes.arm` writes them.
        teachers: The records of the teacher and of its export.
        order: The names of the arms in the order of the table; those of other arms come after them.
        baseline: The arm that the others are compared with.
        timing: The seconds of a student's steps by arm, from one timing run; None where there was none.
        notes: Further notes below the table.

    Returns:
        The content of `comparison.json`.

    Raises:
        DistilError: Some of the records are not of one comparison; see `require_comparable`.
    """
    require_comparable(students, teachers)
    arms: dict[str, list[Record]] = {name: [] for name in order}
    for record in sorted(students, key=lambda one: int(one["seed"])):
        arms.setdefault(record["name"], []).append(record)
    arms = {name: records for name, records in arms.items() if records}
    timed = _timed_together([*students, *teachers])
    seconds = timing
    if seconds is None and timed:
        seconds = {name: statistics.mean(one["seconds"] for one in records) for name, records in arms.items()}
    teacher = next((_f1(one) for one in teachers if one["name"] == "teacher"), None)
    rows = [_teacher_row(one, teacher, timed) for one in teachers]
    rows += [
        _arm_row(name, records, arms.get(baseline), teacher, timed) | {"seconds": (seconds or {}).get(name)}
        for name, records in arms.items()
    ]
    first = students[0]
    content = {
        "format": _FORMAT,
        "baseline": baseline,
        **{name: first["comparable"][name] for name in ("precision", "device", "steps", "windows", "student")},
        "questions": first["questions"],
        "dev_questions": len(first["measurements"]["examples"]),
        "processors": _distinct([one["processor"] for one in students]),
        "versions": _distinct([one["versions"] for one in students]),
        "rows": rows,
        "notes": [*_notes(arms, baseline, timed, timing is not None), *notes],
    }
    image = png_of(plots.arms_figure({row["name"]: row["f1_by_seed"] for row in rows}))
    body = [f"<h1>{escape(_title(content))}</h1>", _table(content), *(_note(note) for note in content["notes"])]
    body += [
        "<h2>F1 of each student</h2>",
        figure_of("F1", "One point is one student; the line is the teacher.", image),
    ]
    body += [_choices(content), _facts(content)]
    page = page_of(_title(content), body)
    write_atomically(directory / CHART_FILE, lambda aside: aside.write_bytes(image))
    write_json(directory / COMPARISON_FILE, content)
    write_atomically(directory / PAGE_FILE, lambda aside: aside.write_text(page, encoding="utf-8"))
    return content


def require_comparable(students: Sequence[Record], teachers: Sequence[Record]) -> None:
    """Check that students may stand in one table.

    Raises:
        DistilError: An arm differs from the first one in precision, data, teacher, student, windows, device or
            optimiser steps, or a teacher in what both have; the message names it.
    """
    first = students[0]
    for one in [*students[1:], *teachers]:
        shared = ("teacher", "dev_data", "windows") if one in teachers else tuple(_WHAT)
        for what in shared:
            here, there = one["comparable"][what], first["comparable"][what]
            if here != there:
                values = f" ({here} and {there})" if isinstance(here, (int, str)) and len(str(here)) < 20 else ""
                raise DistilError(
                    f"{_who(one)} cannot be put into one table with {_who(first)}, because their {_WHAT[what]} "
                    f"differ{values}; remove the directory of one of them, or compare in another output_dir"
                )


def _who(record: Record) -> str:
    return f"arm {record['name']}, seed {record['seed']}" if "seed" in record else f"the {record['name']}"


# --- rows ------------------------------------------------------------------------------------------------------------


def _f1(record: Record) -> float:
    return float(record["measurements"]["metrics"]["f1"])


def _timed_together(records: Sequence[Record]) -> bool:
    """Whether all were measured by one call, one after the other, and none was stopped between."""
    return all(one["timed"] for one in records) and len({one["session"] for one in records}) == 1


def _teacher_row(record: Record, teacher: float | None, timed: bool) -> dict[str, Any]:
    return {"name": _NAMES[record["name"]], "kind": record["name"], **_scores([record], teacher, timed)}


def _arm_row(
    name: str, records: Sequence[Record], baseline: Sequence[Record] | None, teacher: float | None, timed: bool
) -> dict[str, Any]:
    difference = None
    if baseline and baseline is not records:
        difference = asdict(paired_bootstrap(*([_f1_by_question(one) for one in side] for side in (records, baseline))))
    resident = [one["memory_megabytes"]["resident"] for one in records]
    gpu = [one["memory_megabytes"]["gpu"] for one in records]
    trained = [one["trained"] for one in records]
    return {
        "name": name,
        "kind": "arm",
        **_scores(records, teacher, timed),
        "difference": difference,
        "memory_megabytes": max(resident) if None not in resident else None,
        "gpu_megabytes": max(gpu) if None not in gpu else None,
        "trained": max(trained) if None not in trained else None,
        "chosen": records[0]["choice"].get("chosen", {}),
        "tried": records[0]["choice"].get("tried", []),
    }


def _scores(records: Sequence[Record], teacher: float | None, timed: bool) -> dict[str, Any]:
    measured = [one["measurements"] for one in records]
    metrics = [one["metrics"] for one in measured]
    f1 = [one["f1"] for one in metrics]
    split = {
        name: statistics.mean(one[key] for one in metrics)
        for name, key in (("f1_answerable", "HasAns_f1"), ("f1_unanswerable", "NoAns_f1"))
        if all(key in one for one in metrics)
    }
    return {
        "seeds": [one["seed"] for one in records if "seed" in one],
        "exact": statistics.mean(one["exact"] for one in metrics),
        "exact_by_seed": [one["exact"] for one in metrics],
        "f1": statistics.mean(f1),
        "f1_by_seed": f1,
        **split,
        "of_teacher": 100 * statistics.mean(f1) / teacher if teacher else None,
        "parameters": measured[0]["parameters"],
        "megabytes": measured[0]["megabytes"],
        "milliseconds": statistics.median(one["milliseconds"] for one in measured) if timed else None,
    }


def _f1_by_question(record: Record) -> list[float]:
    return [100 * example["f1"] for example in record["measurements"]["examples"]]


def _notes(arms: Mapping[str, Sequence[Record]], baseline: str, timed: bool, timing_run: bool) -> list[str]:
    notes = ["EM and F1 in per cent, the mean over the seeds, in brackets the lowest and the highest."]
    if baseline in arms and len(arms) > 1:
        notes.append(
            f"Difference to {baseline}: of the mean F1, with the 95 % interval of a paired bootstrap over questions "
            "and seeds."
            + (" With one seed it is about these students, not about the methods." if _one_seed(arms) else "")
        )
    if timed or timing_run:
        source = ", from a timing run of some of them, all methods one after the other" if timing_run else ""
        notes.append(
            f"Seconds: of a student's optimiser steps{source}, without reading data and without the pass over the data "
            "of a teacher whose logits are kept on disk."
        )
    if timed:
        notes.append("Milliseconds: one question at a time, the median.")
    else:
        missing = "milliseconds" if timing_run else "seconds and milliseconds"
        notes.append(
            f"No {missing}: the students were not all trained by one call, one after the other, without a stop."
        )
    notes.append(
        "Memory: the largest resident memory of a process that trains a student of the arm, libraries included."
    )
    return notes


def _one_seed(arms: Mapping[str, Sequence[Record]]) -> bool:
    return all(len(records) == 1 for records in arms.values())


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value not in values[:number]]


# --- the table as text and the page ----------------------------------------------------------------------------------


def table_of(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of a comparison as text.

    Args:
        content: The content of `comparison.json`.

    Returns:
        The titles of its columns, and its rows.
    """
    rows = content["rows"]
    split = all("f1_answerable" in row and "f1_unanswerable" in row for row in rows)
    titles = ["method", "EM", "F1"] + (["F1, answerable", "F1, unanswerable"] if split else [])
    titles += ["of the teacher's F1", f"difference to {content['baseline']}", "seconds", "memory, MB"]
    titles += ["parameters trained", "parameters", "ms per question"]
    lines = []
    for row in rows:
        apart = [f"{row[name]:.1f}" for name in ("f1_answerable", "f1_unanswerable")] if split else []
        difference = row.get("difference")
        memory = row.get("gpu_megabytes") or row.get("memory_megabytes")
        lines.append(
            [
                row["name"] + _chosen(row),
                _spread(row["exact"], row["exact_by_seed"]),
                _spread(row["f1"], row["f1_by_seed"]),
                *apart,
                "-" if row["of_teacher"] is None else f"{row['of_teacher']:.1f} %",
                "" if not difference else "{difference:+.1f} ({low:+.1f} to {high:+.1f})".format(**difference),
                _figure(row.get("seconds"), "{:,.0f}"),
                _figure(memory, "{:,.0f}"),
                _figure(row.get("trained"), "{:,}"),
                _figure(row["parameters"], "{:,}"),
                _figure(row["milliseconds"], "{:.1f}"),
            ]
        )
    return titles, lines


def _chosen(row: Mapping[str, Any]) -> str:
    chosen = row.get("chosen")
    return f" ({', '.join(f'{name} {value}' for name, value in chosen.items())})" if chosen else ""


def _spread(mean: float, values: Sequence[float]) -> str:
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _title(content: Mapping[str, Any]) -> str:
    return f"{sum(row['kind'] == 'arm' for row in content['rows'])} ways to teach one student"


def _table(content: Mapping[str, Any]) -> str:
    titles, lines = table_of(content)
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{escape(title)}</th>'
        for number, title in enumerate(titles)
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in line[1:])
        + "</tr>"
        for line in lines
    )
    body = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
    what = (
        f"{content['steps']:,} optimiser steps each on {content['questions']:,} questions, {content['precision']}; "
        f"measured on {content['dev_questions']:,}."
    )
    return f'<p>{escape(what)}</p>\n<div class="scroll" tabindex="0">{body}</div>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _choices(content: Mapping[str, Any]) -> str:
    """What was tried on held-out training questions."""
    lines = [
        f'<tr><th scope="row">{escape(row["name"])}</th><td>{escape(_values(one["values"]))}</td>'
        f'<td class="number">{one["exact"]:.1f}</td><td class="number">{one["f1"]:.1f}</td></tr>'
        for row in content["rows"]
        for one in row.get("tried", [])
    ]
    if not lines:
        return ""
    head = "<tr><th>method</th><th>values</th><th class=number>EM</th><th class=number>F1</th></tr>"
    note = _note("Trained without some articles of the training data, and measured on questions about those.")
    table = f"<table><thead>{head}</thead>\n<tbody>\n" + "\n".join(lines) + "</tbody></table>"
    return f'<h2>Values that were tried</h2>\n{note}\n<div class="scroll" tabindex="0">{table}</div>'


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _facts(content: Mapping[str, Any]) -> str:
    facts = {
        "processor": "; ".join(_processor(one) for one in content["processors"]),
        "windows": _values(content["windows"]),
        "versions": "; ".join(_values(one) for one in content["versions"]),
    }
    rows = "\n".join(f'<tr><th scope="row">{name}</th><td>{escape(value)}</td></tr>' for name, value in facts.items())
    return f"<h2>How it was made</h2>\n<table><tbody>\n{rows}\n</tbody></table>"


def _processor(record: Mapping[str, Any]) -> str:
    name = f"{record['cpu']} ({', '.join(record['instructions'])}), {record['threads']} threads"
    return f"{record['gpu']}, {name}" if "gpu" in record else name
