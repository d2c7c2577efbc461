"""Step 1 on a text file of 1 GB: peak memory of the process, and the time to the first optimiser step.

    python benchmarks/corpus_memory.py --squad train-v1.1.json.gz [--gigabytes 1]

The text is the contexts of a SQuAD file, repeated. Memory is the peak of the process, including PyTorch, teacher and
student (6 and 3 layers of all-MiniLM-L6-v2). Also measured: the tokens per second that one core reads.
"""

import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from haystack_distill import TrainingSettings, students
from haystack_distill.data.corpus import Corpus
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.text_windows import TextSettings, TextWindows
from haystack_distill.models.embedded_teacher import embedded_teacher
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.training.loop import _LoopTrainer


def main(
    squad: Annotated[Path, typer.Option(help="SQuAD file to take contexts from")],
    gigabytes: Annotated[float, typer.Option(help="size of the text")] = 1.0,
    steps: Annotated[int, typer.Option(help="optimiser steps to make")] = 20,
) -> None:
    """Write the text, train on it for some steps, and print what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "corpus.txt"
        text = "\n\n".join(dict.fromkeys(load_examples(squad)["context"])) + "\n\n"
        with open(path, "w", encoding="utf-8") as file:
            while file.tell() < gigabytes * 1e9:
                file.write(text)
        del text
        teacher = LanguageModel.of(embedded_teacher())
        student = students.from_teacher(teacher, layers=3)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        marks: list[float] = []
        compute = _LoopTrainer.training_step

        def marked(self: _LoopTrainer, *arguments: object, **keywords: object) -> object:
            found = compute(self, *arguments, **keywords)  # type: ignore[arg-type]
            marks.append(time.monotonic())
            return found

        _LoopTrainer.training_step = marked  # type: ignore[method-assign, assignment]
        settings = TrainingSettings(max_steps=steps, batch_size=32, checkpoint_every=None, progress=False)
        began = time.monotonic()
        LanguageModelTrainer(student, None, settings).distil(teacher, path, "intermediate_layers")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"text: {path.stat().st_size / 1e9:.2f} GB; first step after {marks[0] - began:.1f} s")
        print(f"peak memory: {peak:,.0f} MB, of which {before:,.0f} MB before the run")
        chosen = TextSettings()
        windows = TextWindows(Corpus(path), teacher.tokenizer, chosen, n_steps=1, seed=0, token_types=False)
        began, tokens = time.monotonic(), 0
        for pieces, _ in windows._read_tokens(None):
            tokens += len(pieces)
            if time.monotonic() - began > 20:
                break
        print(f"reading and tokenizing: {tokens / (time.monotonic() - began):,.0f} tokens a second")
        began, characters = time.monotonic(), 0
        for texts, _ in Corpus(path).read():
            characters += sum(map(len, texts))
            if time.monotonic() - began > 10:
                break
        print(f"reading alone: {characters / 1e6 / (time.monotonic() - began):,.0f} MB of text a second")


if __name__ == "__main__":
    typer.run(main)
