"""The demo: distil the embedded teacher into a pruned student, measure both, answer in a real pipeline."""

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from haystack_distill import students
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.squad.metrics import example_scores
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DistilError
from haystack_distill.models.embedded_teacher import embedded_teacher
from haystack_distill.models.reader import Reader
from haystack_distill.objectives.intermediate_layers import IntermediateLayers
from haystack_distill.training.reader_trainer import ReaderTrainer
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.checks import require_seed
from haystack_distill.utils.files import expand_user, require_writable, temporary_directory

QUESTIONS = {  # and the dev questions whose reference answers are theirs; a retriever has to be given the place, too
    "Who designed the first pendulum clock that worked?": "dev-0046",
    "When did the first trams run in Bellmar?": "dev-0098",  # there: When did the first trams run?
    "In which caves does Roquefort mature?": "dev-0164",
}
LAYERS, INTERMEDIATE_SIZE = 5, 384  # of the teacher's 6 layers and 1,536 feed-forward neurons
INTERMEDIATE_EPOCHS = 2
PREDICTION_EPOCHS = 3
LEARNING_RATE = 3e-4
INTERMEDIATE_LEARNING_RATE = 1e-3
RESULT_FILE = "demo.json"


def run_demo(
    haystack: int | None = None, seed: int = 42, output_dir: Path | None = None, json: bool = False
) -> dict[str, Any]:
    """Distil on the sample, compare with a student trained on labels only, and answer questions in a pipeline.

    Args:
        haystack: Whose pipeline answers at the end: 1 (farm-haystack) or 3 (haystack-ai); by default the one that is
            installed.
        seed: Seed of the training runs.
        output_dir: Where the distilled reader goes; `demo-reader` by default.
        json: Print nothing; the caller prints what is returned.

    Returns:
        `models`: the table's rows; `answers`: of each question the student's answer in the pipeline with its score and
        whether it is right, the same of the teacher, and the reference answers; `directory`; `seconds`.

    Raises:
        DistilError: That Haystack is not installed, or the directory holds something other than a demo's reader.
    """
    began = time.monotonic()
    console, steps = Console(quiet=json), Console(stderr=True, quiet=json)
    directory = expand_user(output_dir or "demo-reader")
    haystack = _installed_haystack(haystack)
    require_writable(directory)
    require_seed(seed)
    dev = sample_path("dev")
    teacher = embedded_teacher(window_settings=WindowSettings(max_seq_len=256, doc_stride=128))
    own = output_dir is None or (directory / RESULT_FILE).exists()  # a demo may be seen again
    if not own and directory.is_dir() and any(directory.iterdir()):
        raise DistilError(f"{directory} is not empty and holds no finished demo; give another --output-dir")
    labels_only, distilled = train_students(teacher, seed, directory, steps, progress=not json, overwrite=own)
    rows = [
        {"model": name, **measure(reader, dev, progress=not json)}
        for name, reader in (
            ("teacher", teacher),
            ("student, labels only", labels_only),
            ("student, distilled", distilled),
        )
    ]
    console.print(_table(rows))
    steps.print(f"[bold]4. answer in a Haystack {haystack} pipeline[/bold], reader from {escape(str(directory))}")
    answers = ask_both(haystack, teacher, directory, dev)
    console.print(_answers_table(answers))
    result = {"models": rows, "answers": answers, "directory": str(directory), "seconds": time.monotonic() - began}
    write_json(directory / RESULT_FILE, result)
    steps.print(f"{result['seconds']:.0f} s")
    return result


def _installed_haystack(wanted: int | None) -> int:
    """The Haystack of this environment: 1 or 3.

    Raises:
        DistilError: There is none, or not the one that is wanted.
    """
    packages = {1: "farm-haystack", 3: "haystack-ai"}  # both are imported as `haystack`
    there = {one.name for one in distributions()}
    installed = [number for number, package in packages.items() if package in there]
    if wanted is None and installed:
        return installed[0]
    if wanted not in installed:
        needed = packages[wanted] if wanted is not None else " or ".join(packages.values())
        remedy = "leave --haystack out" if installed else f"install {needed}"
        raise DistilError(f"the demo answers in a pipeline of {needed}, which is not installed here; {remedy}")
    return wanted


def train_students(
    teacher: Reader,
    seed: int,
    directory: Path | None,
    console: Console,
    progress: bool = True,
    overwrite: bool = False,
) -> tuple[Reader, Reader]:
    """The same pruned `teacher` trained twice on the sample for as many steps: on labels only, and distilled.

    How many epochs go to the layers, the learning rates and the weight of the teacher, which was trained on other
    texts, were chosen on articles held out of the sample's training split. The distilled student is written to
    `directory`.
    """
    train = sample_path("train")
    start = students.pruned(teacher, train, layers=LAYERS, intermediate_size=INTERMEDIATE_SIZE)

    def trainer(
        student: Reader, n_epochs: int, output: Path | None = None, learning_rate: float = LEARNING_RATE
    ) -> ReaderTrainer:
        settings = TrainingSettings(n_epochs=n_epochs, learning_rate=learning_rate, seed=seed, progress=progress)
        return ReaderTrainer(student, output, replace(settings, overwrite=overwrite))

    both = INTERMEDIATE_EPOCHS + PREDICTION_EPOCHS
    console.print(f"[bold]1. labels only[/bold]: {both} epochs")
    labels_only = start.copy()
    trainer(labels_only, both).train(train)
    console.print(f"[bold]2. distil the teacher's layers[/bold]: {INTERMEDIATE_EPOCHS} epochs")
    distilled = start.copy()
    trainer(distilled, INTERMEDIATE_EPOCHS, learning_rate=INTERMEDIATE_LEARNING_RATE).distil(
        teacher, train, IntermediateLayers(attention_loss_weight=0.0)
    )
    console.print(f"[bold]3. distil the teacher's answers[/bold]: {PREDICTION_EPOCHS} epochs")
    trainer(distilled, PREDICTION_EPOCHS, directory).distil_prediction_layer_from(
        teacher, train, temperature=2.0, distillation_loss_weight=0.5
    )
    return labels_only, distilled


def measure(reader: Reader, data: Path, progress: bool = False) -> dict[str, float]:
    """Parameters, megabytes as fp32, exact match and F1 in per cent, questions a second."""
    windows = reader.cut(load_examples(data))
    began = time.monotonic()
    metrics = reader.evaluate_windows(windows, progress=progress)
    seconds = time.monotonic() - began
    return {
        "parameters": reader.n_parameters,
        "megabytes": reader.n_parameters * 4 / 1e6,
        "exact": metrics["exact"],
        "f1": metrics["f1"],
        "questions_per_second": metrics["total"] / seconds,
    }


def ask_both(haystack: int, teacher: Reader, directory: Path, data: Path) -> list[dict[str, Any]]:
    """Ask teacher and student (in `directory`) `QUESTIONS` in the same pipeline over all contexts of `data`.

    Returns:
        Of each question: `question`; `answer`, `score`, `right` of the student; `teacher` with the same three; and the
        `reference` answers. An answer is right where it is an exact match, as SQuAD counts it.
    """
    ask = ask_haystack_1 if haystack == 1 else ask_haystack_3
    examples = load_examples(data)
    contexts = list(dict.fromkeys(examples["context"]))
    with _quiet_haystack(), temporary_directory() as scratch:
        by_student, by_teacher = ask(directory, contexts), ask(teacher.save(scratch), contexts)
    rows = {example["id"]: example for example in examples if example["id"] in QUESTIONS.values()}
    answers = []
    for student, of_teacher in zip(by_student, by_teacher, strict=True):
        question = student["question"]
        example = rows[QUESTIONS[question]]
        for one in (student, of_teacher):
            del one["question"]
            one["right"] = example_scores([example], {example["id"]: one["answer"]})[example["id"]].exact == 1
        reference = list(example["answers"]["text"])
        answers.append({"question": question, **student, "teacher": of_teacher, "reference": reference})
    return answers


@contextlib.contextmanager
def _quiet_haystack() -> Iterator[None]:
    """Haystack's remarks on how it loads a reader are not about the demo."""
    logger = logging.getLogger("haystack")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def ask_haystack_1(directory: Path, contexts: list[str]) -> list[dict[str, Any]]:
    """Answer `QUESTIONS` over `contexts` with a BM25 retriever and the reader in a farm-haystack pipeline."""
    from haystack import Document, Pipeline
    from haystack.document_stores import InMemoryDocumentStore
    from haystack.nodes import BM25Retriever

    from haystack_distill.integrations.farm import DistilFARMReader

    store = InMemoryDocumentStore(use_bm25=True)
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that no argument turns off
        store.write_documents([Document(content=context) for context in contexts])
    pipeline = Pipeline()
    pipeline.add_node(BM25Retriever(store, top_k=5), "Retriever", ["Query"])
    reader = DistilFARMReader(str(directory), use_gpu=False, num_processes=0, progress_bar=False)
    pipeline.add_node(reader, "Reader", ["Retriever"])
    answers = []
    for question in QUESTIONS:
        best = pipeline.run(query=question, params={"Reader": {"top_k": 1}})["answers"][0]
        answers.append({"question": question, "answer": best.answer, "score": best.score})
    return answers


def ask_haystack_3(directory: Path, contexts: list[str]) -> list[dict[str, Any]]:
    """Answer `QUESTIONS` over `contexts` with a BM25 retriever and the reader in a Haystack 3 pipeline."""
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from haystack_distill.integrations.haystack import DistilledReader

    store = InMemoryDocumentStore()
    store.write_documents([Document(content=context) for context in contexts])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=5))
    pipeline.add_component("reader", DistilledReader(model=str(directory), top_k=1, no_answer=False))
    pipeline.connect("retriever.documents", "reader.documents")
    answers = []
    for question in QUESTIONS:
        output = pipeline.run({"retriever": {"query": question}, "reader": {"query": question}})
        best = output["reader"]["answers"][0]
        answers.append({"question": question, "answer": best.data, "score": best.score})
    return answers


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("model", "parameters", "MB", "EM", "F1", "questions/s", title="sample dev set, 176 questions")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['megabytes']:.0f}",
            f"{row['exact']:.1f}",
            f"{row['f1']:.1f}",
            f"{row['questions_per_second']:.0f}",
        )
    return table


def _answers_table(answers: list[dict[str, Any]]) -> Table:
    columns = ("question", "teacher", "student", "right answer")
    table = Table(
        *columns,
        caption="right: the reference answer, but for case, articles and punctuation (in brackets: the score)",
        show_lines=True,
    )
    for answer in answers:
        table.add_row(
            escape(answer["question"]),
            _marked(answer["teacher"]),
            _marked(answer),
            escape(answer["reference"][0] if answer["reference"] else "no answer"),
        )
    return table


def _marked(answer: dict[str, Any]) -> str:
    mark = "[green]right[/green]" if answer["right"] else "[red]wrong[/red]"
    return f"{escape(answer['answer'])}\n{mark} ({answer['score']:.2f})"
