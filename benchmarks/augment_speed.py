"""augment_squad against farm-haystack's: rows a second on the same paragraphs, and ours on a whole file.

    .venv/farm/bin/python benchmarks/augment_speed.py --squad train-v1.1.json.gz [--whole]

farm-haystack's script takes a masked language model and GloVe vectors; neither can be had offline, so the model is
all-MiniLM-L6-v2 with a random head and the vectors are random: only speed is compared. A row is a question beside an
edited context. Ours runs in one process and edits contexts, as farm-haystack's does.
"""

import itertools
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from augment.augment_squad import augment_squad
from haystack_distill.data.squad.json_files import questions_in_file


def sample_of(squad: Path, paragraphs: int, output: Path) -> None:
    """The first paragraphs of a file as a file of its own, each article with its own."""
    articles: dict[int, dict[str, Any]] = {}
    for number, (_, questions) in enumerate(
        itertools.groupby(questions_in_file(squad), key=lambda question: question.place[:4])
    ):
        if number == paragraphs:
            break
        first = next(questions)
        article = articles.setdefault(first.place.article, {"title": first.title, "paragraphs": []})
        article["paragraphs"].append(first.paragraph)
    output.write_text(json.dumps({"version": "1.1", "data": list(articles.values())}), encoding="utf-8")


def random_model(directory: Path) -> None:
    """all-MiniLM-L6-v2 as a masked language model, its head random, with its slow tokenizer's files."""
    import torch
    from transformers import BertForMaskedLM, BertTokenizer

    from haystack_distill.models.embedded_teacher import base_model_directory

    torch.manual_seed(0)
    base = base_model_directory()
    BertForMaskedLM.from_pretrained(base).save_pretrained(directory)
    tokenizer = BertTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(directory)
    from transformers import BertTokenizerFast

    BertTokenizerFast.from_pretrained(base).save_pretrained(directory)


def random_vectors(squad: Path, path: Path) -> None:
    """300 random numbers for 50,000 words, those of the file first."""
    words = dict.fromkeys(
        word
        for question in questions_in_file(squad)
        for word in question.paragraph["context"].lower().replace(".", " ").replace(",", " ").split()
    )
    names = [*words, *(f"word{number}" for number in range(50_000))][:50_000]
    random = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        for name in names:
            file.write(f"{name} {' '.join(f'{number:.3f}' for number in random.normal(size=300))}\n")


def seconds_of(run: Any) -> float:
    """How long a call takes."""
    began = time.monotonic()
    run()
    return time.monotonic() - began


def main(
    squad: Annotated[Path, typer.Option(help="SQuAD v1.1 training file")],
    paragraphs: Annotated[int, typer.Option(help="paragraphs that farm-haystack and the model work on")] = 8,
    more: Annotated[int, typer.Option(help="paragraphs that our three operations work on, which are quick")] = 800,
    factor: int = 20,
    repeats: int = 3,
    whole: Annotated[bool, typer.Option(help="also multiply the whole file, once by 20 and once by 100")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print every rate as JSON instead of the table")] = False,
) -> None:
    """Time the arms in turn and print rows a second, medians and ratios."""
    from haystack.utils.augment_squad import augment_squad as theirs

    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        sample_of(squad, paragraphs, at / "few.json")
        sample_of(squad, more, at / "many.json")
        random_model(at / "model")
        random_vectors(at / "many.json", at / "glove.txt")
        shared = {"model": str(at / "model"), "glove_path": at / "glove.txt", "multiplication_factor": factor}
        ours = {"augment": "context", "overwrite": True, "multiplication_factor": factor}

        def farm() -> None:
            theirs(at / "few.json", at / "farm.json", tokenizer=str(at / "model"), device="cpu", **shared)

        arms = {
            "farm-haystack": farm,
            "ours, same model": lambda: augment_squad(
                at / "few.json", at / "c.json", **(ours | shared), p_mask=0, p_pos=0, p_ng=0, device="cpu"
            ),
            "ours, three operations": lambda: augment_squad(at / "many.json", at / "t.json", **ours),
        }
        questions = {
            name: sum(1 for _ in questions_in_file(at / ("many.json" if "three" in name else "few.json")))
            for name in arms
        }
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(repeats):
            for name, run in arms.items():
                rates[name].append(questions[name] * factor / seconds_of(run))
        if as_json:
            print(json.dumps(rates))
            return
        table = Table("arm", "rows/s, median", "lowest", "highest", "times farm-haystack")
        slow = statistics.median(rates["farm-haystack"])
        for name, found in rates.items():
            middle = statistics.median(found)
            table.add_row(name, f"{middle:,.1f}", f"{min(found):,.1f}", f"{max(found):,.1f}", f"{middle / slow:,.0f}")
        Console().print(table)
    if whole:
        _whole(squad)


def _whole(squad: Path) -> None:
    """The whole file, in a process of its own for each factor, so that its peak memory is its own."""
    import multiprocessing

    for factor in (20, 100):
        with tempfile.TemporaryDirectory() as folder:
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=_multiply, args=(squad, Path(folder) / "out.json", factor))
            process.start()
            process.join()


def _multiply(squad: Path, output: Path, factor: int) -> None:
    report = augment_squad(squad, output, augment="context", multiplication_factor=factor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"times {factor}: {report.tally.rows_out:,} rows in {report.seconds:.0f} s, "
        f"{report.tally.rows_out / report.seconds:,.0f} rows/s in one process, tagger {report.tagger}, "
        f"peak memory {peak:.0f} MB, {output.stat().st_size / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    typer.run(main)
