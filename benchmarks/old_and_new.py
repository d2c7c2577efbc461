"""The speed of an older commit and of this tree, in alternating pairs: did a change make training or serving slower?

    python benchmarks/old_and_new.py 4c1b764 --teacher ../shared/models/minilm-l6-squad2 --squad ../shared/data/squad

The older commit is checked out into a work tree of its own for the time of the measurement. Each run is a process of
its own; which of the two goes first changes from pair to pair. Ratios are new by old within a pair: below 1 is faster.
"""

import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from bench import call, questions_with_passages
from environments import ROOT, tree_of

from haystack_distill import Reader, students
from haystack_distill.data.squad.load import load_examples, write_squad
from haystack_distill.utils.atomic import write_json

# Name, script, environment, its own arguments, and which figure of its result is a time.
ARMS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("distilling answers", "train_arm.py", "farm", {"arm": "ours", "method": "answers", "epochs": 1}),
    ("distilling layers", "train_arm.py", "haystack", {"arm": "ours", "method": "layers", "epochs": 1}),
    ("serving in farm-haystack", "serve_arm.py", "farm", {"framework": "farm", "backend": "torch"}),
    ("serving in Haystack 3", "serve_arm.py", "haystack", {"framework": "haystack", "backend": "torch"}),
]


def seconds_of(result: dict[str, Any]) -> float:
    """What an arm took: the whole of a training run, all questions of a serving run."""
    return float(result["seconds"] if isinstance(result["seconds"], float) else sum(result["seconds"]))


def main(
    old: Annotated[str, typer.Argument(help="the commit to compare with")],
    teacher: Annotated[Path, typer.Option(help="reader directory of the teacher")],
    squad: Annotated[Path, typer.Option(help="directory with train-v1.1.json.gz and dev-v1.1.json.gz")],
    arm: Annotated[
        list[str] | None, typer.Option(help="an arm by its name; say it again for more. Default: all")
    ] = None,
    pairs: Annotated[int, typer.Option(help="runs of each commit")] = 10,
    questions: Annotated[int, typer.Option(help="training questions")] = 150,
    asked: Annotated[int, typer.Option(help="questions that readers are served, ten passages each")] = 30,
) -> None:
    """Run the arms and print the ratios."""
    with tree_of(old) as before, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_squad(load_examples(squad / "train-v1.1.json.gz").select(range(questions)), folder / "train.json")
        students.from_teacher(Reader.load(teacher, device="cpu"), layers=3).save(folder / "student")
        write_json(folder / "asked.json", questions_with_passages(squad / "dev-v1.1.json.gz", asked))
        for name, script, environment, own in [one for one in ARMS if not arm or one[0] in arm]:
            if script == "train_arm.py":
                arguments = own | {"teacher": teacher.resolve(), "student": folder / "student"}
                arguments |= {"data": folder / "train.json", "output": folder / "made"}
            else:
                arguments = own | {"model": teacher.resolve(), "questions": folder / "asked.json"}
            ratios, taken = [], {"old": [], "new": []}  # type: ignore[var-annotated]
            for pair in range(pairs):
                order = ["old", "new"] if pair % 2 else ["new", "old"]
                for which in order:
                    os.environ["PYTHONPATH"] = str(before if which == "old" else ROOT)
                    shutil.rmtree(folder / "cache", ignore_errors=True)
                    shutil.rmtree(folder / "made", ignore_errors=True)
                    taken[which].append(seconds_of(call(script, environment, arguments, folder / "cache")))
                ratios.append(taken["new"][-1] / taken["old"][-1])
            print(
                f"{name}: old {statistics.median(taken['old']):.2f} s, new {statistics.median(taken['new']):.2f} s, "
                f"ratio {statistics.median(ratios):.3f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
