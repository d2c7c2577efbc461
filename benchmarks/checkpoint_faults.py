"""Faults at checkpoints: runs killed with SIGKILL at random moments, and runs whose checkpoints are damaged.

    python benchmarks/checkpoint_faults.py [--kills 100] [--damages 60]

A tiny random reader is trained with a checkpoint and an evaluation every step, `keep_best`, and one checkpoint kept
(for half of the damages: three). A killed run is started again until it is done; a damaged one is resumed. Its weights,
metrics and losses must then be those of a run left alone, to the bit; a run that cannot be resumed must say which
checkpoint is damaged. Exits with 1 where anything else comes out.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

import typer

CONTEXT = multiprocessing.get_context("forkserver")  # imports once, and starts each run in a process of its own
MODULES = ["haystack_distill.training.reader_trainer", "transformers.models.bert", "torch.optim"]


@dataclass(frozen=True)
class Job:
    """A run: what it is called, how many checkpoints it keeps, and where all lie."""

    folder: Path
    name: str
    keep: int

    @property
    def directory(self) -> Path:
        """Its output directory."""
        return self.folder / self.name


def make_student(folder: Path) -> None:
    """A tiny random reader, and questions of the sample to train and to measure on."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering

    from haystack_distill import Reader, WindowSettings
    from haystack_distill.data.sample import sample_path
    from haystack_distill.data.squad.load import load_examples, write_squad
    from haystack_distill.models.embedded_teacher import base_model_directory, base_tokenizer

    torch.manual_seed(0)
    tokenizer = base_tokenizer(base_model_directory())
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape))
    Reader(model, tokenizer, window_settings=WindowSettings(128, 64, 32), device="cpu").save(folder / "student")
    for split, number in (("train", 24), ("dev", 4)):
        examples = load_examples(sample_path(split), cache_dir=folder / "cache")  # type: ignore[arg-type]
        write_squad(examples.select(range(number)), folder / f"{split}.json")


def train(job: Job) -> None:
    """Run or resume a job; its error is written to a file next to its directory."""
    import datasets
    import torch
    import transformers

    from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    window_settings = WindowSettings(128, 64, 32)
    student = Reader.load(job.folder / "student", window_settings=window_settings, device="cpu", precision="fp32")
    settings = TrainingSettings(
        batch_size=8,
        learning_rate=1e-3,
        dropout=0.1,
        precision="fp32",
        evaluate_every=1,
        keep_best=True,
        keep_checkpoints=job.keep,
        resume=True,
        log_every=1,
        progress=False,
    )
    trainer = ReaderTrainer(student, job.directory, settings, cache_dir=job.folder / "cache")
    try:
        trainer.train(str(job.folder / "train.json"), str(job.folder / "dev.json"))
    except DistilError as error:
        job.directory.with_suffix(".error").write_text(str(error), encoding="utf-8")
        raise SystemExit(2) from error


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process of its own that calls `target`."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def whole(target: Callable[..., None], *arguments: Any) -> int:
    """The exit code of `target`, called in a process of its own."""
    process = start(target, *arguments)
    process.join()
    return int(process.exitcode or 0)


def kill(process: BaseProcess) -> None:
    """Send SIGKILL and wait for the process to end."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def result_of(directory: Path) -> dict[str, Any]:
    """All that a finished run leaves, but for how long it took: hash of the weights, metrics, log, and file names."""
    record = json.loads((directory / "haystack_distill.json").read_text(encoding="utf-8"))
    timed = ("seconds", "runtime", "per_second", "flos")  # the last is of the last start alone
    history = [
        {name: value for name, value in line.items() if not any(word in name for word in timed)}
        for line in record["history"]
    ]
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
    return {"weights": record["weights"], "metrics": record["metrics"], "history": history, "files": files}


def killed_runs(folder: Path, wanted: dict[str, Any], alone: float, kills: int, moments: random.Random) -> Counter:
    """Runs killed again and again until they are done, as often as so many kills take; how they ended."""
    done, outcomes, runs = 0, Counter(), 0
    while done < kills:
        runs += 1
        job = Job(folder, f"killed-{runs}", keep=1)
        while True:
            process = start(train, job)
            process.join(timeout=alone * moments.uniform(0.4, 1.1) if done < kills else None)
            if process.exitcode is not None:
                break
            kill(process)
            done += 1
        right = process.exitcode == 0 and result_of(job.directory) == wanted
        outcomes["identical" if right else f"WRONG ({job.name}, exit code {process.exitcode})"] += 1
        shutil.rmtree(job.directory)
    return outcomes


def unfinished(folder: Path, keep: int, checkpoints: int) -> Job:
    """A run that was killed when it had so many checkpoints on the disk."""
    job = Job(folder, f"unfinished-{keep}", keep)
    process = start(train, job)
    while len(list(job.directory.glob("checkpoints/checkpoint-*"))) < checkpoints:
        assert process.exitcode is None, "it ended too early"
        time.sleep(0.001)
    kill(process)
    return job


def newest_first(path: Path) -> tuple[int, str]:
    """A key to sort the files of checkpoints by."""
    return -int(path.parent.name.rsplit("-", 1)[1]), path.name


def damage(path: Path, how: str, moments: random.Random) -> None:
    """Cut a file, flip one bit of it, or remove it."""
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    place = moments.randrange(len(content))
    if how == "flipped":
        content[place] ^= 1 << moments.randrange(8)
    path.write_bytes(content[:place] if how == "cut" else content)


def damaged_runs(folder: Path, wanted: dict[str, Any], damages: int, moments: random.Random) -> Counter:
    """Unfinished runs of which one file is damaged, resumed; how they ended."""
    made = [unfinished(folder, 1, 1), unfinished(folder, 3, 3)]
    outcomes: Counter = Counter()
    for number in range(damages):
        like = made[number % 2]
        job = Job(folder, "damaged", like.keep)
        shutil.copytree(like.directory, job.directory)
        files = sorted(job.directory.glob("checkpoints/checkpoint-*/*"), key=newest_first)
        path, how = files[(number // 6) % len(files)], ("cut", "flipped", "missing")[number // 2 % 3]
        damage(path, how, moments)
        code = whole(train, job)
        report = job.directory.with_suffix(".error")
        if code == 0 and result_of(job.directory) == wanted:
            outcomes["recovered"] += 1
        elif code == 2 and path.parent.name in report.read_text(encoding="utf-8"):
            outcomes["named"] += 1
        else:
            outcomes[f"WRONG ({how} {path.parent.name}/{path.name} of {like.name}, exit code {code})"] += 1
        report.unlink(missing_ok=True)
        shutil.rmtree(job.directory)
    return outcomes


def main(
    kills: Annotated[int, typer.Option(help="how many times to kill a run")] = 100,
    damages: Annotated[int, typer.Option(help="how many checkpoints to damage")] = 60,
    seed: Annotated[int, typer.Option(help="of the moments and the places")] = 1,
) -> None:
    """Train alone, then killed and damaged, and compare."""
    CONTEXT.set_forkserver_preload(MODULES)
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        assert whole(make_student, folder) == 0
        for name in ("first", "alone"):  # the first fills the cache and warms what is imported
            began = time.monotonic()
            assert whole(train, Job(folder, name, keep=1)) == 0
            alone = time.monotonic() - began
        wanted = result_of(folder / "alone")
        assert wanted == result_of(folder / "first")
        wrong = 0
        for what, number, outcomes in (
            ("kills", kills, lambda: killed_runs(folder, wanted, alone, kills, moments)),
            ("damaged checkpoints", damages, lambda: damaged_runs(folder, wanted, damages, moments)),
        ):
            found = outcomes() if number else Counter()
            wrong += sum(count for name, count in found.items() if name.startswith("WRONG"))
            print(f"{number} {what}: {', '.join(f'{count} {name}' for name, count in found.items())}", flush=True)
        print(f"left alone, the run takes {alone:.1f} s")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
