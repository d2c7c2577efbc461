"""The table of `haystack-distill compare` as Markdown, the best method first.

python benchmarks/compare/table.py screening/comparison.json
"""

import json
from pathlib import Path
from typing import Annotated

import typer


def main(comparison: Annotated[Path, typer.Argument(help="comparison.json of an output directory")]) -> None:
    """Print the table."""
    found = json.loads(comparison.read_text(encoding="utf-8"))
    several = any(len(row["seeds"]) > 1 for row in found["rows"])
    header = ["method", "EM", "F1", *(["F1 by seed"] if several else []), "of the teacher's F1"]
    header += [f"difference to {found['baseline']}", "memory, MB", "parameters trained"]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    teachers = [row for row in found["rows"] if row["kind"] != "arm"]
    arms = sorted((row for row in found["rows"] if row["kind"] == "arm"), key=lambda row: -row["f1"])
    for row in teachers + arms:
        cells = [row["name"], f"{row['exact']:.1f}", f"{row['f1']:.1f}"]
        if several:
            cells.append(", ".join(f"{value:.1f}" for value in row["f1_by_seed"]) if row["seeds"] else "")
        cells.append(f"{row['of_teacher']:.1f} %")
        difference = row.get("difference")
        cells.append("" if not difference else _difference(difference))
        cells.append(f"{row['memory_megabytes']:,.0f}" if row.get("memory_megabytes") else "")
        cells.append(f"{row['trained']:,}" if row.get("trained") else "")
        print(f"| {' | '.join(cells)} |")


def _difference(found: dict[str, float]) -> str:
    return f"{found['difference']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"


if __name__ == "__main__":
    typer.run(main)
