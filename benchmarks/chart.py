"""The chart of the README: size against F1 and latency against F1.

    python benchmarks/chart.py

It draws what is measured already and measures nothing. F1 and sizes are those of `accuracy.json` (made by
`real_data.py`, the narrow student by the recipe, see docs/benchmarks.md); latencies are the medians of `results.json`
(made by `bench.py`), whose student has the same shape: how fast a reader is depends on its shape, not on its weights.
"""

import json
import statistics
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
CHART = HERE.parent / "docs" / "assets" / "size-and-latency.svg"
TEACHER, DISTILLED, LABELS = "#6b7280", "#1d6fa5", "#d98c5f"


def points(axes: Axes, color: str, label: str, places: list[tuple[float, float, str, tuple[int, int]]]) -> None:
    """Points of one kind, each with its note beside it at an offset in points."""
    axes.scatter([x for x, *_ in places], [y for _, y, *_ in places], s=46, color=color, label=label, zorder=3)
    for x, y, note, offset in places:
        axes.annotate(
            note,
            (x, y),
            textcoords="offset points",
            xytext=offset,
            ha="right" if offset[0] < 0 else "left" if offset[0] > 0 else "center",
            va="center",
            fontsize=8.5,
        )


def main() -> None:
    accuracy = json.loads((HERE / "accuracy.json").read_text(encoding="utf-8"))
    serving = json.loads((HERE / "results.json").read_text(encoding="utf-8"))["serving"]
    teacher, students = accuracy["teacher"], accuracy["students"]
    best = next(student for student in students if "f1_int8" in student)

    def latency(reader: str) -> float:
        return statistics.median(run["p50"] for run in serving[f"farm: {reader}"])

    mpl.rcParams.update({"font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "chart"})
    figure = Figure(figsize=(8.6, 3.3), layout="constrained", facecolor="white")
    size, speed = figure.subplots(1, 2, sharey=True)

    def named(student: dict) -> str:
        return {"labels only": "labels", "prediction layer": "prediction layer"}.get(
            student["taught"], "layers, then prediction" if student is best else "three-step recipe"
        )

    whole = (teacher["million_parameters"], teacher["f1"], "teacher", (-9, 0))
    points(size, TEACHER, "teacher", [whole])
    for color, label, labels_only in ((DISTILLED, "distilled", False), (LABELS, "labels only", True)):
        of = [student for student in students if (student["taught"] == "labels only") == labels_only]
        places = []
        for student in of:
            where = (9, 0) if student["million_parameters"] < 10 else (-9, 4 if student is best else -4)
            places.append((student["million_parameters"], student["f1"], named(student), where))
        points(size, color, label, places)
    size.set(xlabel="million parameters", ylabel="F1, SQuAD v1.1", xlim=(0, 25), ylim=(0, 82))
    size.legend(loc="lower right", frameon=False, fontsize=8.5)

    slow, quick = latency("FARMReader, teacher"), latency("ours, teacher, torch")
    points(
        speed,
        TEACHER,
        "teacher",
        [
            (slow, teacher["f1"], f"teacher in FARMReader, {slow:.0f} ms", (-9, -12)),
            (quick, teacher["f1"], f"teacher, {quick:.0f} ms", (9, 2)),
        ],
    )
    onnx, int8 = latency("ours, student, onnx"), latency("ours, student, onnx-int8")
    points(
        speed,
        DISTILLED,
        "distilled",
        [
            (onnx, best["f1"], f"student, {onnx:.0f} ms", (9, 2)),
            (int8, best["f1_int8"], f"student in int8, {int8:.0f} ms", (9, -11)),
        ],
    )
    speed.set(xlabel="ms a question of ten passages, two CPU cores", xlim=(0, 1250))
    for axes in (size, speed):
        axes.grid(color="#e5e7eb", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    CHART.parent.mkdir(exist_ok=True)
    figure.savefig(CHART, metadata={"Date": None})


if __name__ == "__main__":
    main()
