"""The demo's comparison over several seeds: labels only against distilled, same steps, on the bundled sample.

    python benchmarks/sample_seeds.py --output DIR

Finished seeds are kept in `--output`, so an interrupted benchmark can be resumed.
"""

import json
import statistics
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from haystack_distill import WindowSettings
from haystack_distill.cli.demo import measure, train_students
from haystack_distill.data.sample import sample_path
from haystack_distill.models.embedded_teacher import embedded_teacher
from haystack_distill.utils.atomic import write_json


def main(output: Annotated[Path, typer.Option(help="where results go")], seeds: str = "1,2,3") -> None:
    """Train both students with each seed, measure them on the sample's dev set, print a table."""
    console = Console()
    output.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in seeds.split(","):
        done = output / f"seed-{seed}.json"
        if not done.exists():
            teacher = embedded_teacher(window_settings=WindowSettings(max_seq_len=256, doc_stride=128))
            labels_only, distilled = train_students(teacher, int(seed), None, console, progress=False)
            dev = sample_path("dev")
            write_json(done, {"labels only": measure(labels_only, dev), "distilled": measure(distilled, dev)})
        results.append(json.loads(done.read_text()))
    table = Table("student", *(f"F1, seed {seed}" for seed in seeds.split(",")), "mean F1", "mean EM")
    for name in ("labels only", "distilled"):
        f1 = [result[name]["f1"] for result in results]
        exact = statistics.mean(result[name]["exact"] for result in results)
        table.add_row(name, *(f"{value:.1f}" for value in f1), f"{statistics.mean(f1):.1f}", f"{exact:.1f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
