"""Memory of a distillation run as the data grows, and the size of the teacher's cache on disk.

    python benchmarks/memory.py --teacher DIR --train train-v1.1.json.gz

The models are tiny (random, with the teacher's tokenizer), so that the data dominates; each run is a separate
process that reads the file, runs the teacher on every window, and trains for 100 steps.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer


def one(directory: Path, data: str) -> None:
    """A run in this process: its peak of anonymous memory, and the size of the cache, as JSON."""
    from watch import Watch

    from haystack_distill import Reader, ReaderTrainer, TrainingSettings

    teacher, student = Reader.load(directory / "tiny"), Reader.load(directory / "tiny")
    watch = Watch(teacher=teacher.model, student=student.model)
    settings = TrainingSettings(max_steps=100, progress=False)
    trainer = ReaderTrainer(student.copy(), None, settings, cache_dir=directory / "cache" / Path(data).stem)
    trainer.distil_prediction_layer_from(teacher, data, temperature=2.0, distillation_loss_weight=0.5)
    windows = student.cut(_examples(data, directory), cache_dir=directory / "cache" / Path(data).stem)
    cached = sum(
        file.stat().st_size
        for file in (directory / "cache" / Path(data).stem).rglob("*.arrow")
        if "teacher" in str(file)
    )
    tokens = int(windows.lengths.sum())
    print(json.dumps(watch.result() | {"windows": len(windows), "bytes_per_token": cached / tokens}))


def _examples(data: str, directory: Path):  # type: ignore[no-untyped-def]
    from haystack_distill.data.squad.load import load_examples

    return load_examples(data, cache_dir=directory / "cache" / Path(data).stem)


def main(
    teacher: Annotated[Path, typer.Option(help="reader directory whose tokenizer is taken")],
    train: Annotated[Path, typer.Option(help="SQuAD v1.1 training file")],
    questions: str = "5000,40000",
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    directory: Annotated[Path | None, typer.Option(hidden=True)] = None,
    data: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Run once for each number of questions."""
    if directory is not None:
        one(directory, data)
        return
    from haystack_distill import Reader, students
    from haystack_distill.data.squad.load import load_examples, write_squad

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shape = {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 24}
        students.from_config(Reader.load(teacher, device="cpu"), **shape).save(work / "tiny")
        for number in questions.split(","):
            write_squad(load_examples(train).select(range(int(number))), work / f"{number}.json", version="1.1")
            call = [sys.executable, __file__, "--teacher", str(teacher), "--train", str(train)]
            call += ["--directory", str(work), "--data", str(work / f"{number}.json")]
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found[number] = json.loads(done.stdout.strip().splitlines()[-1])
    if as_json:
        print(json.dumps(found))
        return
    for number, run in found.items():
        print(
            f"{int(number):,} questions, {run['windows']:,} windows: peak {run['peak_megabytes']:.0f} MB, "
            f"{run['seconds']:.0f} s, teacher's cache {run['bytes_per_token']:.1f} bytes a window token"
        )


if __name__ == "__main__":
    typer.run(main)
