"""F1 against passages/s of several readers in a Haystack pipeline, on every backend, as a chart.

    python benchmarks/served.py --reader "teacher=DIR" --reader "student of 3 layers=DIR" --squad DIR
        [--questions 40] [--rounds 3] [--chart FILE.svg] [--json FILE]

A directory is what `haystack-distill export --runtime all --data DEV` wrote: F1 of each backend is that of its
`export.json`, in the number format that the backend takes by itself; PyTorch is measured in fp32 too, which has the F1
of the directory's own weights. The pipeline is that of the Haystack that is installed. Questions come one at a time,
each with ten passages; backends and readers take turns, and the fastest round counts.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from bench import questions_with_passages
from serve_arm import Ask, farm, haystack

from haystack_distill.models.backends.exported import FILES
from haystack_distill.utils.devices import AUTO_PRECISION_VARIABLE

COLORS = ("#6b7280", "#1d6fa5", "#d98c5f", "#2f855a", "#8b5cf6")
MARKERS = {
    "torch, fp32": "o",
    "torch": "s",
    "onnx": "D",
    "onnx-int8": "v",
    "openvino": "^",
    "openvino-int8": "P",
    "FARMReader": "X",
    "TransformersExtractiveReader": "X",
}


def metrics_of(directory: Path) -> dict[str, float]:
    """F1 by backend, from the records of the exports."""
    found: dict[str, float] = {}
    for record in directory.glob("*/export.json"):
        backends = json.loads(record.read_text(encoding="utf-8"))["backends"]
        found |= {name: entry["metrics"]["f1"] for name, entry in backends.items() if "metrics" in entry}
    return found


def pipelines(directory: Path, theirs: bool) -> dict[str, tuple[Ask, float]]:
    """What can be asked of a reader, with its F1: our component on each backend, and the framework's own reader."""
    try:
        from haystack.nodes import FARMReader  # noqa: F401

        make, name_of_theirs = farm, "FARMReader"
    except ImportError:
        make, name_of_theirs = haystack, "TransformersExtractiveReader"
    f1 = metrics_of(directory)
    found: dict[str, tuple[Ask, float]] = {}
    if theirs:
        found[name_of_theirs] = make(str(directory), "theirs"), f1["torch"]
    before = os.environ.get(AUTO_PRECISION_VARIABLE)
    os.environ[AUTO_PRECISION_VARIABLE] = "fp32"
    found["torch, fp32"] = make(str(directory), "torch"), f1["torch"]
    os.environ.pop(AUTO_PRECISION_VARIABLE)
    if before is not None:
        os.environ[AUTO_PRECISION_VARIABLE] = before
    found["torch"] = make(str(directory), "torch"), f1["torch"]
    for backend, files in FILES.items():
        if backend in f1 and all((directory / file).exists() for file in files):
            found[backend] = make(str(directory), backend), f1[backend]
    return found


def seconds_of(ask: Ask, asked: list[dict[str, Any]]) -> float:
    """How long a pipeline takes for some questions, one after the other."""
    began = time.perf_counter()
    for one in asked:
        ask(**one)
    return time.perf_counter() - began


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """F1 against passages/s: a colour for each reader, a marker for each backend."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    mpl.rcParams.update({"font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "chart"})
    figure = Figure(figsize=(8.6, 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    readers = list(dict.fromkeys(row["reader"] for row in rows))
    colors = dict(zip(readers, COLORS, strict=False))
    for reader in readers:
        own = sorted((row for row in rows if row["reader"] == reader), key=lambda row: row["passages_per_second"])
        places = [(row["passages_per_second"], row["f1"]) for row in own]
        axes.plot(*zip(*places, strict=True), color=colors[reader], linewidth=0.8, alpha=0.4)
        for row, (x, y) in zip(own, places, strict=True):
            axes.scatter(x, y, s=52, color=colors[reader], marker=MARKERS[row["backend"]], zorder=3)
    axes.set(xscale="log", xlabel="passages a second in the pipeline", ylabel="F1, SQuAD v1.1")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    axes.minorticks_off()
    axes.grid(color="#e5e7eb", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    used = [name for name in MARKERS if any(row["backend"] == name for row in rows)]
    first = [Line2D([], [], color=colors[name], linewidth=3, label=name) for name in readers]
    shape: dict[str, Any] = {"color": "#374151", "linestyle": ""}
    second = [Line2D([], [], marker=MARKERS[name], label=name, **shape) for name in used]
    figure.legend(handles=[*first, *second], loc="outside right center", frameon=False, fontsize=8.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print a table and draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", required=True, help="NAME=DIRECTORY; the first is the teacher")
    parser.add_argument("--squad", type=Path, required=True, help="directory with dev-v1.1.json.gz")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    asked = questions_with_passages(given.squad / "dev-v1.1.json.gz", given.questions)
    passages = sum(len(one["passages"]) for one in asked)
    made = {}
    for number, entry in enumerate(given.reader):
        name, _, directory = entry.partition("=")
        for backend, pipeline in pipelines(Path(directory), theirs=number == 0).items():
            made[name, backend] = pipeline
    best = dict.fromkeys(made, float("inf"))
    for ask, _ in made.values():
        seconds_of(ask, asked[:2])
    for _ in range(given.rounds):
        for key, (ask, _) in made.items():
            best[key] = min(best[key], seconds_of(ask, asked))
    rows = [
        {"reader": name, "backend": backend, "f1": made[name, backend][1], "passages_per_second": passages / seconds}
        for (name, backend), seconds in best.items()
    ]
    slowest = rows[0]["passages_per_second"]
    for row in rows:
        rate = row["passages_per_second"]
        print(
            f"{row['reader']:28} {row['backend']:28} F1 {row['f1']:5.1f} {rate:8.1f} passages/s {rate / slowest:6.1f}"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if given.chart:
        draw(rows, given.chart)


if __name__ == "__main__":
    main()
