"""RESULTS.md and results.png from the results of `bench.py`."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OWN = ", default precision"  # of ours: what it takes by itself; that of the others is fp32


def page(found: dict[str, Any]) -> str:
    """RESULTS.md."""
    at = found["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    lines = [
        "# Measured side by side",
        "",
        (
            f"{at['processor']}, {at['cores']} cores, {', '.join(at['instructions']) or 'no VNNI, no bf16'}, "
            f"huge pages by {at['huge_pages']}, "
            f"{at['date']}, Python {at['python']}, {packages}. Made by `make bench`; medians, with the lowest and "
            "highest in brackets. Tools take turns; what one is against another is the median of the rounds' ratios."
        ),
        *_training(found),
        *_serving(found),
        *_export(found),
        *_augmenting(found),
        *_memory(found),
        "",
    ]
    return "\n".join(lines)


def _training(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, runs in found["training"].items():
        tool, method = name.split(" / ")
        times = []
        for which in ("ours", f"ours{OWN}"):
            mine = found["training"][f"{which} / {method}"]
            times.append(_median(run["seconds"] / one["seconds"] for run, one in zip(runs, mine, strict=True)))
        rows.append(
            [
                method,
                tool,
                _spread([run["seconds"] for run in runs]),
                *("" if tool.startswith("ours") else f"{one:.2f} times as fast" for one in times),
                f"{runs[0]['f1']:.1f}",
                f"{_median(run['peak_megabytes'] for run in runs):.0f}",
                *(
                    f"{_median(run['phases'].get(part, 0.0) for run in runs):.1f}"
                    for part in ("reading", "teacher", "student", "backward", "optimiser", "rest")
                ),
            ]
        )
    head = (
        "method,tool,seconds,ours is,ours in its own precision is,F1,peak MB,reading,teacher,forward,backward,step,rest"
    )
    return [
        "",
        "## Distilling",
        "",
        (
            f"{found['questions']} questions of SQuAD v1.1, batch 16, windows of 384, teacher MiniLM-L6, student its "
            f"layers 1, 3 and 5; {_rounds(found['training'])}. From the file to the trained student, without imports "
            "or loading. Each tool with its own defaults otherwise: ours trains without dropout, the others with the "
            "model's 0.1. Two epochs are the default of farm-haystack and of ours. All compute in fp32, which is the "
            f"others' default; ours{OWN}, takes {found['own_precision']} on this machine."
        ),
        "",
        *_table(head, rows),
        "",
        (
            f"Teacher and student need {found['gigaflops_training']:,.0f} GFLOP for answers in two epochs, padding not "
            f"counted: ours reaches {found['shares']['distilling answers']:.0%} of what the machine does in fp32 "
            "matrix products (measured right before and after), reading included."
        ),
    ]


def _serving(found: dict[str, Any]) -> list[str]:
    rates = {name: [run["passages_per_second"] for run in runs] for name, runs in found["serving"].items()}
    # All were asked these, and ratios are of them.
    shared = min(len(run["seconds"]) for runs in found["serving"].values() for run in runs)
    rows = []
    for name, runs in found["serving"].items():
        framework, reader = name.split(": ")
        theirs = next(of for of in rates if of.startswith(framework) and "ours" not in of)
        alone = [f"{_median(run[part] for run in runs):.0f}" for part in ("p50", "p99")]
        at_once = runs[0]["together"]
        if "error" in at_once:
            together = [at_once["error"][:60], "", ""]
        else:
            together = [f"{at_once['p50']:.0f}", f"{at_once['p99']:.0f}", str(at_once["other_answers"])]
        times = _median(
            sum(their["seconds"][:shared]) / sum(run["seconds"][:shared])
            for their, run in zip(found["serving"][theirs], runs, strict=True)
        )
        rows.append([framework, reader, _spread(rates[name]), f"{times:.1f}", *alone, *together])
    head = "framework,reader,passages/s,times theirs,p50,p99,p50 of 8,p99 of 8,other answers"
    needed = found["gigaflops_passage"]
    reached = [f"{name} {share:.0%}" for name, share in found["shares"].items() if name.startswith("serving")]
    return [
        "",
        "## Serving",
        "",
        (
            "Questions of SQuAD v1.1 dev, one at a time, each with ten passages of its article, in the framework's "
            f"pipeline; {found['asked']} questions, {found['asked_slow']} of them for the teacher; "
            f"{_rounds(found['serving'])}. `times theirs` is of those that all were asked. `p50`, `p99`: milliseconds "
            "of a question, alone and with eight callers at once; `other answers`: how many questions the eight got "
            "another answer to than one got alone."
        ),
        "",
        *_table(head, rows),
        "",
        (
            f"A passage takes the teacher {needed['teacher']:.2f} GFLOP and the student {needed['student']:.2f}, "
            "padding not counted. Share of what the machine does in fp32 matrix products that is reached, everything "
            f"included: {'; '.join(reached)}."
        ),
    ]


def _export(found: dict[str, Any]) -> list[str]:
    rows = []
    for which, exported in found["export"].items():
        for backend, entry in exported["backends"].items():
            megabytes = f"{entry['megabytes']:.1f}" if "megabytes" in entry else ""
            rows.append(
                [which, backend, megabytes, f"{entry['metrics']['exact']:.1f}", f"{entry['metrics']['f1']:.1f}"]
            )
    total = found["export"]["teacher"]["backends"]["torch"]["metrics"]["total"]
    introduction = (
        f"With `--int8 auto`, on {total} dev questions; the student is the distilled one (a short training, see "
        "above). The int8 models are those that were fastest within 0.3 F1; without a row, none was."
    )
    return ["", "## Export", "", introduction, "", *_table("reader,backend,MB,EM,F1", rows)]


def _augmenting(found: dict[str, Any]) -> list[str]:
    slow = statistics.median(found["augmenting"]["farm-haystack"])
    rows = [
        [name, _spread(rates), f"{statistics.median(rates) / slow:.1f}"] for name, rates in found["augmenting"].items()
    ]
    introduction = (
        "Rows a second, contexts edited, times 20, one process (`benchmarks/augment_speed.py`): farm-haystack's "
        "script and ours with the same model on the same 8 paragraphs, ours without a model on 800."
    )
    return ["", "## Augmenting", "", introduction, "", *_table("tool,rows/s,times farm-haystack", rows)]


def _memory(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{int(questions):,}",
            f"{run['windows']:,}",
            f"{run['peak_megabytes']:.0f}",
            f"{run['seconds']:.0f}",
            f"{run['bytes_per_token']:.1f}",
        ]
        for questions, run in found["memory"].items()
    ]
    introduction = (
        "Peak anonymous memory (RssAnon) of a distillation with tiny models, so that what is seen is the data's share "
        "(`benchmarks/memory.py`):"
    )
    head = "questions,windows,peak MB,seconds,teacher's cache: bytes a window token"
    return ["", "## Memory", "", introduction, "", *_table(head, rows)]


def _table(head: str, rows: Iterable[list[str]]) -> list[str]:
    names = head.split(",")
    return [f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows)]


def _rounds(arms: dict[str, list[Any]]) -> str:
    rounds = len(next(iter(arms.values())))
    return "one round" if rounds == 1 else f"{rounds} rounds"


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def _spread(values: list[float]) -> str:
    median = f"{statistics.median(values):.1f}"
    return median if len(values) == 1 else f"{median} ({min(values):.1f} to {max(values):.1f})"


def plot(found: dict[str, Any], path: Path) -> None:
    """Distilling and serving as bars, each with its number."""
    from matplotlib.figure import Figure

    heights = [0.25 * len(found[part]) + 0.7 for part in ("training", "serving")]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    above, below = figure.subplots(2, height_ratios=heights)
    for axes, part, of, unit in (
        (above, "training", "seconds", "seconds for one distillation"),
        (below, "serving", "passages_per_second", "passages a second"),
    ):
        names = list(found[part])[::-1]
        bars = axes.barh(
            names,
            [_median(run[of] for run in found[part][name]) for name in names],
            color=["#2a6f97" if "ours" in name and "our batches" not in name else "#b0b0b0" for name in names],
        )
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.margins(x=0.1)
        axes.set_xlabel(unit)
    figure.savefig(path, dpi=120)
