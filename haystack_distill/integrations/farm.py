"""Haystack 1 (farm-haystack 1.26): FARMReader with this package's training, and each kind of reader from the other.

    from haystack_distill.integrations.farm import DistilFARMReader as FARMReader

is the one line that changes: `train`, `distil_prediction_layer_from` and `distil_intermediate_layers_from` keep their
signatures and train the reader in place. What an argument asks for is done or, where it cannot be, refused by an error;
one that would change no result here is named in a warning.
"""

import copy
import functools
import hashlib
import inspect
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

try:
    from haystack.modeling.data_handler.processor import SquadProcessor, UnlabeledTextProcessor
    from haystack.modeling.model.adaptive_model import AdaptiveModel
    from haystack.modeling.model.prediction_head import QuestionAnsweringHead
    from haystack.modeling.utils import initialize_device_settings
    from haystack.nodes import FARMReader
    from haystack.utils import EarlyStopping
except ImportError as error:
    raise ImportError(
        "haystack_distill.integrations.farm needs Haystack 1: pip install 'haystack-distill[farm]', in an environment "
        "without haystack-ai"
    ) from error

from haystack_distill.data.squad.arrow import SCHEMA
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DataError, DistilError
from haystack_distill.integrations.farm_reader import ReadsText
from haystack_distill.models.adapters import require_plain
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.models.calibration import forget_calibration, stored_threshold
from haystack_distill.models.reader import Reader
from haystack_distill.students.exits import require_no_exits
from haystack_distill.training.checkpoints import finished_run, unfinished_run
from haystack_distill.training.reader_trainer import ReaderTrainer
from haystack_distill.training.run_directory import RunResult
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.cache import cached_table
from haystack_distill.utils.families import EARLY_EXIT
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.hashing import hash_file, hash_json
from haystack_distill.utils.model_files import RUN_FILE, TRAINED_RECORD, lacks_weights, read_json_object
from haystack_distill.utils.transformers_compat import (
    ignore_adapters,
    question_answering_config,
    refuse_remote_code,
    require_known_model_type,
)

__all__ = ["DistilFARMReader", "farm_reader_from", "reader_from_farm"]

logger = logging.getLogger(__name__)

# What FARMReader.save writes and FARMReader prefers over a Hugging Face model in the same directory.
_HAYSTACK_1_FILES = (
    "language_model.bin",
    "language_model_config.json",
    "prediction_head_0.bin",
    "prediction_head_0_config.json",
    "processor_config.json",
)
_LINES_PER_BATCH = 1000


def reader_from_farm(farm_reader: FARMReader, **settings: Any) -> Reader:
    """A `Reader` around the very weights of a FARMReader: training the one trains the other.

    It cuts contexts as the FARMReader does (`max_seq_len`, `doc_stride`, `max_query_length`), runs on its device in its
    number format, and prefers the no-answer as `no_ans_boost` has it. A calibration of the FARMReader's confidence
    scores is folded into the weights of its head, which changes no score. Whether no-answers are returned is up to each
    call here (`Reader.answer(allow_no_answer=...)`), and scores are probabilities always.

    Args:
        farm_reader: A FARMReader with one question answering head.
        settings: The constructor's of `Reader`; they take precedence over the FARMReader's. Another `device` moves the
            weights of both.

    Raises:
        DistilError: The FARMReader is an ONNX model, or not a language model with one question answering head.
    """
    inferencer = farm_reader.inferencer
    model = _question_answering_model(inferencer.model)
    cut = inferencer.processor
    own = {
        "window_settings": WindowSettings(cut.max_seq_len, cut.doc_stride, cut.max_query_length),
        # A Reader takes off the threshold of a calibration by itself, a FARMReader does not.
        "no_answer_threshold": -float(inferencer.model.prediction_heads[0].no_ans_boost)
        - (stored_threshold(model.config) or 0.0),
        "batch_size": inferencer.batch_size,
        "precision": "fp32",
        "device": inferencer.devices[0],
    }
    return Reader(model, cut.tokenizer, **(own | settings))


def farm_reader_from(reader: Reader | str | Path, **arguments: Any) -> "DistilFARMReader":
    """A DistilFARMReader from a `Reader`, whose weights are copied, or from a directory that `Reader.save` wrote.

    Args:
        reader: A reader, or the directory or hub name of one. For a pipeline that is to be saved as YAML give a
            directory: the YAML names it.
        arguments: The constructor's of FARMReader; for a `Reader`, `max_seq_len`, `doc_stride`, `max_query_length`,
            `no_ans_boost` and `batch_size` are by default the reader's.
    """
    if not isinstance(reader, Reader):
        return DistilFARMReader(str(reader), **arguments)
    own = {
        "max_seq_len": reader.window_settings.max_seq_len,
        "doc_stride": reader.window_settings.doc_stride,
        "max_query_length": reader.window_settings.max_query_length,
        "no_ans_boost": -reader.no_answer_threshold - (stored_threshold(reader.model.config) or 0.0),
        "batch_size": reader.batch_size,
    }
    require_plain(reader.model, "FARM cannot load it")
    require_no_exits(reader, "FARM cannot load it; run it with integrations.farm_reader.DistilledReader")
    with TemporaryDirectory(prefix="haystack-distill-") as directory:
        return DistilFARMReader(str(reader.save(directory)), **(own | arguments))


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _signature_of(parent: Callable[..., Any]) -> Callable[[_Method], Callable[..., RunResult]]:
    """Give a method its parent's signature and `on_bad_example`; it is given all arguments by name, with defaults."""
    signature = inspect.signature(parent)
    more = inspect.Parameter("on_bad_example", inspect.Parameter.KEYWORD_ONLY, default="error", annotation=str)
    signature = signature.replace(parameters=[*signature.parameters.values(), more])

    def decorate(method: _Method) -> Callable[..., RunResult]:
        @functools.wraps(method)
        def wrapper(*arguments: Any, **keywords: Any) -> RunResult:
            bound = signature.bind(*arguments, **keywords)
            bound.apply_defaults()
            given = dict(bound.arguments)
            return method(given.pop("self"), given)

        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        return wrapper

    return decorate


class DistilFARMReader(ReadsText, FARMReader):
    """Haystack 1's FARMReader with this package's training.

    Answering, evaluation and pipelines are the parent's, but documents without text (blank ones, tables) are left out
    and `_split_overlap` meta that only one document records does no harm. The YAML has `type: DistilFARMReader`; a
    process that loads it has to import this module first. Training differs in what it does, not in how it is called;
    arguments mean what they do in FARMReader, with these additions:

    - The teacher may be a FARMReader or a `haystack_distill.Reader`, with another tokenizer for the prediction layer.
    - `data_dir` and `train_filename` name a file that `data.squad.load.read_squad` reads (SQuAD-format JSON or a table;
      gzip too); bad questions are errors that name their place, or with `on_bad_example="skip"` left out and counted.
    - `processor` may be a SquadProcessor or, for intermediate layers, an UnlabeledTextProcessor; its files and lengths
      then count, as in Haystack 1. A line of plain text longer than `max_seq_len` becomes several windows.
    - `dev_split` holds out whole contexts, the same ones each time.
    - `test_filename` is measured at the end; the metrics are in the result, named `test_...`.
    - `checkpoint_every` writes checkpoints to `checkpoint_root_dir`, and an interrupted run is resumed from there when
      it is called again with the same arguments. They go when the run is finished.
    - `caching` keeps windows and teacher outputs in `cache_path`; without it they go when the run ends.
    - `use_amp` takes bf16 or fp16 where the hardware is fast at it.
    - `distillation_loss` may be a function as `ReaderTrainer` takes it, or one of Haystack 1 with parameters named
      student_logits and teacher_logits: it is called for the starts and for the ends of each window, (1, tokens, 1),
      divided by the temperature.
    - `early_stopping` takes `EarlyStopping(metric="f1", mode="max")`, and the best weights are restored.
    - Without effect, and named in one warning, are `num_processes` (one process prepares the data, with the tokenizer's
      threads), `evaluate_every` without data to evaluate on, `checkpoints_to_keep` without `checkpoint_every`, and
      `cache_path` without `caching`.

    Each returns a `haystack_distill.RunResult` and saves the reader to `save_dir` as a Hugging Face model directory.
    What these signatures have no room for (a layer mapping, weights of losses, ...) is there without them:
    `ReaderTrainer(reader_from_farm(student))` trains the same weights.

    Raises:
        DistilError: An argument asks for something that is not done here; the message names the remedy.
        DataError: A data file is not what it should be.

    Example:
        >>> student = DistilFARMReader("prajjwal1/bert-medium")  # doctest: +SKIP
        >>> teacher = DistilFARMReader("deepset/bert-large-uncased-whole-word-masking-squad2")  # doctest: +SKIP
        >>> student.distil_prediction_layer_from(teacher, "data", "train.json", n_epochs=3)  # doctest: +SKIP
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        # Of its own, or Haystack would not note the parameters for YAML.
        _check_model(str(arguments[0] if arguments else keywords.get("model_name_or_path", "")))
        with refuse_remote_code(), ignore_adapters():
            super().__init__(*arguments, **keywords)

    __init__.__signature__ = inspect.signature(FARMReader.__init__)  # type: ignore[attr-defined]

    @_signature_of(FARMReader.train)
    def train(self, given: dict[str, Any]) -> RunResult:
        """Train on the labels of a SQuAD file; see FARMReader for the arguments and this class for what differs."""
        return self._run("train", given)

    @_signature_of(FARMReader.distil_prediction_layer_from)
    def distil_prediction_layer_from(self, given: dict[str, Any]) -> RunResult:
        """Learn a teacher's answers; see FARMReader for the arguments and this class for what differs."""
        return self._run("distil_prediction_layer", given)

    @_signature_of(FARMReader.distil_intermediate_layers_from)
    def distil_intermediate_layers_from(self, given: dict[str, Any]) -> RunResult:
        """Learn a teacher's layers; see FARMReader for the arguments and this class for what differs."""
        return self._run("distil_intermediate_layers", given)

    def save(self, directory: Path) -> None:
        """Write a Hugging Face model directory, which FARMReader, transformers and `Reader.load` all load; no pickles.

        Args:
            directory: Where to; files of a model that FARMReader saved there before are replaced.
        """
        reader_from_farm(self).save(directory)
        for name in _HAYSTACK_1_FILES:
            (Path(directory) / name).unlink(missing_ok=True)

    def _run(self, method: str, given: dict[str, Any]) -> RunResult:
        plan = _Plan.of(self, method, given)
        teacher_model = given.get("teacher_model")
        with ExitStack() as stack:
            stack.callback(_go_home, self, teacher_model)
            cache = plan.cache_path or Path(stack.enter_context(_scratch()))
            run_dir = plan.checkpoints
            if run_dir is None:
                plan.save_dir.parent.mkdir(parents=True, exist_ok=True)
                run_dir = Path(stack.enter_context(_scratch(plan.save_dir.parent))) / method
            student = reader_from_farm(
                self,
                window_settings=plan.sources.window_settings,
                device=plan.device,
                precision=plan.settings.precision,
            )
            _check_student(student, plan.sources)
            data, dev, test = plan.sources.load(cache)
            trainer = ReaderTrainer(student, run_dir, plan.settings, cache_dir=cache)
            if method == "train":
                result = trainer.train(data, dev)
            else:
                teacher = _teacher(teacher_model, student, plan.teacher_batch_size, plan.settings.batch_size)
                distil = getattr(trainer, f"{method}_from")
                result = distil(teacher, data, dev, **plan.distillation)
            forget_calibration(self.inferencer.model.language_model.model.config)  # the student's is a copy
            self.head_is_trained = method != "distil_intermediate_layers"
            metrics = dict(result.metrics)
            if test is not None:
                tested = student.evaluate_windows(student.cut(test, cache_dir=cache), progress=plan.settings.progress)
                metrics |= {f"test_{name}": value for name, value in tested.items()}
            self.save(plan.save_dir)
            shutil.copy(run_dir / RUN_FILE, plan.save_dir / RUN_FILE)
            if plan.best_dir is not None:
                self.save(plan.best_dir)
            if plan.checkpoints is not None:
                for path in plan.checkpoints.iterdir():  # it was empty when the run began
                    if path.is_file():
                        path.unlink()
                with suppress(OSError):  # something of the user's is in there
                    plan.checkpoints.rmdir()
        return replace(result, metrics=metrics, directory=plan.save_dir)


@dataclass(frozen=True)
class _Plan:
    """A call's arguments in the words of this package."""

    sources: "_Sources"
    device: torch.device
    settings: TrainingSettings
    teacher_batch_size: int | None
    distillation: dict[str, Any]
    save_dir: Path
    best_dir: Path | None  # where early stopping wants the best weights
    checkpoints: Path | None  # where checkpoints outlive an interrupted run; None: nowhere
    cache_path: Path | None  # None: nothing is kept when the run ends

    @classmethod
    def of(cls, reader: FARMReader, method: str, given: dict[str, Any]) -> "_Plan":
        """Read the arguments; each one is used or refused."""
        left = dict(given)
        take = left.pop
        take("teacher_model", None)  # see _teacher
        sources = _Sources.of(reader, method, left)
        device = _device(reader, take("use_gpu"), take("devices"))
        batch_size, teacher_batch_size = take("batch_size"), take("teacher_batch_size", None)
        distillation = _distillation(method, left, batch_size, teacher_batch_size)
        use_amp, num_processes = take("use_amp"), take("num_processes")
        _refuse(not isinstance(use_amp, bool), f"use_amp must be True or False, not {use_amp!r}")
        idle = {"num_processes": num_processes not in (None, 0, 1)}

        accumulation, evaluate_every, checkpoint_every = (
            take(name) for name in ("grad_acc_steps", "evaluate_every", "checkpoint_every")
        )
        _refuse(accumulation < 1, f"grad_acc_steps must be at least 1, not {accumulation!r}")
        idle["evaluate_every without dev_filename or dev_split"] = (
            evaluate_every not in (0, 300) and not sources.has_dev
        )
        early_stopping = take("early_stopping")
        patience = _patience(early_stopping, bool(evaluate_every) and sources.has_dev)
        _refuse(
            patience is not None and checkpoint_every not in (None, evaluate_every),
            "with early_stopping a checkpoint is written at each evaluation; leave checkpoint_every out, or give it "
            "the number that evaluate_every has",
        )
        # Each kind of run has checkpoints of its own: the steps of a recipe are often called with one directory.
        checkpoints = expand_user(take("checkpoint_root_dir")) / method
        keep = checkpoint_every is not None or unfinished_run(checkpoints) is not None
        _refuse(
            keep and _is_foreign(checkpoints),
            f"{checkpoints}, where checkpoints would be kept, holds other files; choose another checkpoint_root_dir",
        )
        keep_checkpoints = take("checkpoints_to_keep")
        idle["checkpoints_to_keep without checkpoint_every"] = keep_checkpoints != 3 and checkpoint_every is None
        caching, cache_path = take("caching"), expand_user(take("cache_path"))
        idle["cache_path without caching=True"] = not caching and cache_path != Path("cache/data_silo")

        evaluation_steps = _optimiser_steps("evaluate_every", evaluate_every or None, accumulation)
        checkpoint_steps = _optimiser_steps("checkpoint_every", checkpoint_every, accumulation)
        settings = TrainingSettings(
            n_epochs=take("n_epochs"),
            learning_rate=take("learning_rate"),
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            warmup_proportion=take("warmup_proportion"),
            dropout=None,  # the model's own, as in Haystack 1
            precision="auto" if use_amp else "fp32",
            evaluate_every=evaluation_steps if sources.has_dev else None,
            keep_best=patience is not None,
            early_stopping_patience=patience,
            checkpoint_every=checkpoint_steps if patience is None else "auto",  # at each evaluation
            keep_checkpoints=keep_checkpoints,
            resume=keep,
            overwrite=True,  # as in Haystack 1
            progress=reader.progress_bar,
        )
        suffix = "_tinybert_stage_1" if method == "distil_intermediate_layers" else ""
        plan = cls(
            sources=sources,
            device=device,
            settings=settings,
            teacher_batch_size=teacher_batch_size,
            distillation=distillation,
            save_dir=expand_user(
                take("save_dir") or f"./saved_models/{reader.inferencer.model.language_model.name}{suffix}"
            ),
            best_dir=expand_user(early_stopping.save_dir) if early_stopping and early_stopping.save_dir else None,
            checkpoints=checkpoints if keep else None,
            cache_path=cache_path if caching else None,
        )
        assert not left, f"neither used nor refused: {left}"
        if any(idle.values()):
            logger.warning("without effect: %s", ", ".join(name for name, given in idle.items() if given))
        return plan


@dataclass(frozen=True)
class _Sources:
    """Which files a run reads, and how their texts are cut."""

    train: Path
    dev: Path | None
    test: Path | None
    dev_split: float
    window_settings: WindowSettings
    plain_text: bool
    tokenizer: Any  # a processor's own, or None
    on_bad_example: Any  # as for load_examples

    @property
    def has_dev(self) -> bool:
        return self.dev is not None or self.dev_split > 0

    @classmethod
    def of(cls, reader: FARMReader, method: str, given: dict[str, Any]) -> "_Sources":
        processor = given.pop("processor", None)
        data_dir, train = given.pop("data_dir"), given.pop("train_filename")
        on_bad_example = given.pop("on_bad_example")
        own = reader.inferencer.processor
        asked = {name: given.pop(name) for name in ("dev_filename", "test_filename", "max_seq_len")}
        asked["dev_split"] = given.pop("dev_split") or None  # 0, the default, asks for nothing
        asked["max_query_length"] = given.pop("max_query_length", None)
        plain_text = type(processor) is UnlabeledTextProcessor
        if processor is not None:
            _refuse(
                not plain_text and type(processor) is not SquadProcessor,
                f"processor must be a SquadProcessor or an UnlabeledTextProcessor, not {type(processor).__name__}; "
                "write other data as a SQuAD file first (haystack_distill.data.squad.load.write_squad)",
            )
            _refuse(
                plain_text and method != "distil_intermediate_layers",
                "an UnlabeledTextProcessor reads no questions and answers; it is for distil_intermediate_layers_from",
            )
            for name, value in asked.items():
                own_value = getattr(processor, name, None)
                _refuse(
                    value is not None and str(value) != str(own_value),
                    f"{name}={value!r}, but the processor has {own_value!r}, which takes precedence; give it to the "
                    "processor",
                )
                asked[name] = own_value
            # These two have to be given, so they cannot contradict: a processor's own go before them, as in Haystack 1.
            data_dir, train = processor.data_dir or data_dir, processor.train_filename or train
        dev, test = asked["dev_filename"], asked["test_filename"]
        dev_split = asked["dev_split"] or 0.0
        _refuse(
            plain_text and bool(dev or test or dev_split),
            "plain text has no answers to measure on; leave dev_filename, test_filename and dev_split out",
        )
        _refuse(
            plain_text and on_bad_example != "error",
            "on_bad_example is about questions, and plain text has none; leave it out",
        )
        _refuse(bool(dev and dev_split), "dev_filename and dev_split are two ways to one thing; give one of them")
        _refuse(not 0 <= dev_split < 1, f"dev_split must be from 0 to below 1, not {dev_split!r}")
        max_seq_len, max_query_length = (
            getattr(own, name) if asked[name] is None else asked[name] for name in ("max_seq_len", "max_query_length")
        )
        if plain_text:  # no question to leave room for, no answer for whose sake windows would have to overlap
            window_settings = WindowSettings(max_seq_len, doc_stride=max_seq_len, max_query_length=1)
        else:
            stride = own.doc_stride if processor is None else processor.doc_stride
            window_settings = WindowSettings(max_seq_len, stride, max_query_length)
        folder = expand_user(data_dir)
        return cls(
            train=folder / train,
            dev=folder / dev if dev else None,
            test=folder / test if test else None,
            dev_split=dev_split,
            window_settings=window_settings,
            plain_text=plain_text,
            tokenizer=getattr(processor, "tokenizer", None),
            on_bad_example=on_bad_example,
        )

    def load(self, cache: Path) -> tuple[datasets.Dataset, datasets.Dataset | None, datasets.Dataset | None]:
        """Examples to train on, to measure on, to test on."""
        if self.plain_text:
            return _plain_text(self.train, cache), None, None
        read = functools.partial(load_examples, on_bad_example=self.on_bad_example, cache_dir=cache)
        data = read(self.train)
        dev = read(self.dev) if self.dev else None
        if self.dev_split:
            data, dev = _hold_out(data, self.dev_split)
        return data, dev, read(self.test) if self.test else None


def _check_model(name: str) -> None:
    """Refuse what FARMReader would end in a traceback on, or run code for. A model that it saved itself passes."""
    directory = Path(name)
    if (directory / "language_model.bin").exists() or not directory.exists():
        return
    require_known_model_type(name, "reader")
    config = read_json_object(directory, "config.json") or {}
    model_type = str(config.get("model_type"))
    kind = "a BiLSTM reader" if model_type == MODEL_TYPE else "a reader with early exits"
    _refuse(
        model_type == MODEL_TYPE or model_type.startswith(EARLY_EXIT),
        f"{name} is {kind}, which farm-haystack does not have; run it with integrations.farm_reader.DistilledReader",
    )
    _refuse(
        (directory / TRAINED_RECORD).exists(),
        f"{name} holds the trained weights of a reader alone, and farm-haystack cannot put them together with their "
        f"base; Reader.load({name!r}).save(NEW_DIRECTORY) writes a whole model, unless it has adapters, or run it with "
        "integrations.farm_reader.DistilledReader",
    )
    settings = read_json_object(directory, "tokenizer_config.json") or {}
    again = f"Reader.load({name!r}).save(NEW_DIRECTORY)"
    _refuse(
        settings.get("tokenizer_class") == "TokenizersBackend"
        or isinstance(settings.get("extra_special_tokens"), list),
        f"{name}: transformers 5 wrote this tokenizer, in a form that transformers 4 cannot read; {again} writes it "
        "so that both can",
    )
    labels = len(config.get("id2label") or "12")
    _refuse(
        labels != 2, f"{name} has a head of {labels} labels, a reader has two; {again} gives it a fresh one to train"
    )


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise DistilError(message)


def _is_foreign(directory: Path) -> bool:
    """Whether a directory holds something, but neither an unfinished nor a finished run."""
    return (
        directory.exists()
        and any(not name.startswith(".haystack-distill") for name in os.listdir(directory))
        and unfinished_run(directory) is None
        and finished_run(directory) is None
    )


def _scratch(directory: Path | None = None) -> TemporaryDirectory:
    return TemporaryDirectory(dir=directory, prefix=".haystack-distill-", ignore_cleanup_errors=True)


def _device(reader: FARMReader, use_gpu: bool | None, devices: list | None) -> torch.device:
    """The reader's own device, unless one is asked for."""
    chosen = reader.inferencer.devices[:1]
    if use_gpu is not None or devices:
        _refuse(
            use_gpu is False and any(torch.device(device).type != "cpu" for device in devices or []),
            f"use_gpu=False and devices={devices} contradict each other; give one of them",
        )
        chosen, _ = initialize_device_settings(devices=devices, use_cuda=use_gpu, multi_gpu=False)
    _refuse(
        len(chosen) > 1,
        f"one process trains on one device, not on {len(chosen)}; start one process a GPU with `accelerate launch`",
    )
    _refuse(
        chosen[0].type == "cuda" and bool(chosen[0].index),
        f"a process trains on the first GPU that it sees, not on {chosen[0]}; choose which that is with the "
        "environment variable CUDA_VISIBLE_DEVICES",
    )
    return chosen[0]


def _optimiser_steps(name: str, batches: int | None, accumulation: int) -> int | None:
    """Haystack 1 counts batches, this package optimiser steps."""
    _refuse(batches is not None and batches < 1, f"{name} must be at least 1, not {batches!r}")
    return None if batches is None else -(-batches // accumulation)


def _patience(early_stopping: Any, evaluates: bool) -> int | None:
    """Evaluations without a better F1 after which to stop, or None."""
    if early_stopping is None:
        return None
    _refuse(
        type(early_stopping) is not EarlyStopping,
        f"early_stopping must be a haystack.utils.EarlyStopping, not {type(early_stopping).__name__}",
    )
    _refuse(
        (early_stopping.metric, early_stopping.mode, early_stopping.head) != ("f1", "max", 0),
        'early stopping goes by the F1 of the dev data; use EarlyStopping(metric="f1", mode="max")',
    )
    _refuse(
        early_stopping.min_evals != 0 or early_stopping.min_delta not in (0, 0.001),
        "every evaluation counts in early stopping, and every better F1; leave min_evals and min_delta out",
    )
    _refuse(not evaluates, "early_stopping needs dev_filename or dev_split, and evaluate_every")
    return int(early_stopping.patience) + 1  # Haystack 1 stops when there are more than `patience`


def _distillation(
    method: str, given: dict[str, Any], batch_size: int, teacher_batch_size: int | None
) -> dict[str, Any]:
    """The arguments that only distillation has; for intermediate layers, most of them have nothing to act on."""
    if method == "train":
        return {}
    names = ("temperature", "distillation_loss_weight", "distillation_loss")
    arguments = {name: given.pop(name) for name in names}
    if method == "distil_prediction_layer":
        arguments["distillation_loss"] = _loss(arguments["distillation_loss"], arguments["temperature"])
        return arguments
    temperature, weight, loss = (arguments[name] for name in names)
    _refuse(
        temperature != 1,
        f"temperature={temperature} softens answers, which intermediate layers have none of; leave it out here and "
        "give it to distil_prediction_layer_from",
    )
    # 0.5 is the default, without effect in Haystack 1 too; 1 (the teacher alone) is what happens.
    _refuse(
        weight not in (0.5, 1),
        f"distillation_loss_weight={weight}: intermediate layers learn from the teacher alone, there are no labels to "
        "weigh against; leave it out here and give it to distil_prediction_layer_from",
    )
    _refuse(
        loss != "mse",
        f"distillation_loss={loss!r}: layers are compared by their mean squared difference; leave it out, or use "
        "haystack_distill.objectives for a loss of your own",
    )
    _refuse(
        teacher_batch_size not in (None, batch_size),
        "in intermediate-layer distillation the teacher runs on the student's batches; leave teacher_batch_size out, "
        "and where memory is short lower batch_size and raise grad_acc_steps",
    )
    return {}


def _loss(loss: Any, temperature: float) -> Any:
    """A distillation loss as PredictionLayerObjective takes it; a function of Haystack 1 is wrapped."""
    if not callable(loss):
        return loss
    parameters = inspect.signature(loss)
    if _binds(parameters, student_logits=None, teacher_logits=None) and "mask" not in parameters.parameters:
        # Its attributes stay its own: a resumed run is compared by them, and so by its own idea of them (`__reduce__`).
        @functools.wraps(loss, updated=())
        def of_each_window(
            student_logits: torch.Tensor, teacher_logits: torch.Tensor, mask: torch.Tensor, temperature: float
        ) -> torch.Tensor:
            losses = []
            for student, teacher, scored in zip(student_logits, teacher_logits, mask, strict=True):
                pair = (logits[scored].reshape(1, -1, 1) / temperature for logits in (student, teacher))
                value = loss(**dict(zip(("student_logits", "teacher_logits"), pair, strict=True)))
                losses.append(value.mean() * temperature**2)
            return torch.stack(losses)

        return of_each_window
    _refuse(
        not _binds(parameters, None, None, None, None),
        f"distillation_loss {loss!r} must take student_logits and teacher_logits by name, or (student_logits, "
        "teacher_logits, mask, temperature) as haystack_distill.objectives.PredictionLayerObjective calls it",
    )
    return loss


def _binds(signature: inspect.Signature, *arguments: Any, **keywords: Any) -> bool:
    try:
        signature.bind(*arguments, **keywords)
    except TypeError:
        return False
    return True


def _teacher(teacher: Any, student: Reader, teacher_batch_size: int | None, batch_size: int) -> Reader:
    """The teacher as a Reader. A FARMReader sees the student's windows, as in Haystack 1; a Reader its own."""
    if isinstance(teacher, FARMReader):
        if not getattr(teacher, "head_is_trained", False) and lacks_weights(teacher.model_name_or_path, "qa_outputs."):
            logger.warning(
                "%s holds no weights for a question answering head, so the teacher's answers are random; layers can be "
                "learnt from it",
                teacher.model_name_or_path,
            )
        reader = reader_from_farm(
            teacher,
            window_settings=student.window_settings,
            batch_size=teacher_batch_size or batch_size,
            device=student.device,
            precision=student.precision,
        )
    elif isinstance(teacher, Reader):
        reader = teacher.replace(batch_size=teacher_batch_size or teacher.batch_size)
    else:
        raise DistilError(
            f"teacher_model must be a FARMReader or a haystack_distill.Reader, not {type(teacher).__name__}"
        )
    _refuse(
        reader.model.get_input_embeddings() is student.model.get_input_embeddings(),
        "teacher and student are the same model; load the student from its directory once more, or make a smaller one "
        "(haystack_distill.students.cut)",
    )
    return reader


def _go_home(*readers: Any) -> None:
    """Back to the devices that predict() uses, and out of training mode."""
    for reader in readers:
        if isinstance(reader, FARMReader):
            reader.inferencer.model.to(reader.inferencer.devices[0])
            reader.inferencer.model.eval()


def _check_student(student: Reader, sources: _Sources) -> None:
    kinds = {parameter.dtype for parameter in student.model.parameters()}
    _refuse(
        kinds != {torch.float32},
        f"the weights are {', '.join(sorted(map(str, kinds)))}, too coarse to train; load the reader without "
        "torch_dtype in model_kwargs, and use use_amp=True for speed",
    )
    tokenizer = sources.tokenizer
    _refuse(
        tokenizer is not None
        and (not tokenizer.is_fast or tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(student.tokenizer)),
        "the processor's tokenizer is not the student's; make the processor with reader.inferencer.processor.tokenizer",
    )


def _question_answering_model(model: Any) -> PreTrainedModel:
    """A transformers model whose modules are those of FARM's language model and head, not copies of them."""
    _refuse(
        not isinstance(model, AdaptiveModel),
        f"the weights of {type(model).__name__} cannot be shared; load the FARMReader from a Hugging Face directory",
    )
    heads = list(model.prediction_heads)
    _refuse(
        len(heads) != 1 or not isinstance(heads[0], QuestionAnsweringHead) or len(heads[0].layer_dims) != 2,
        "the FARMReader must have one question answering head of one layer, not "
        f"{[(type(head).__name__, getattr(head, 'layer_dims', None)) for head in heads]}",
    )
    head, language_model = heads[0], model.language_model.model
    linear = head.feed_forward.feed_forward[0]
    _fold_calibration(head, linear)
    with torch.device("meta"):  # only its shape is wanted; no memory, no random numbers
        assembled = AutoModelForQuestionAnswering.from_config(
            question_answering_config(language_model.config), trust_remote_code=False
        )
    prefix = assembled.base_model_prefix
    has_pooler = getattr(getattr(assembled, prefix), "pooler", None) is not None
    if getattr(language_model, "pooler", None) is not None and not has_pooler:
        # The pooler plays no part in question answering. FARM's own module keeps it; ours is a view without it.
        language_model = copy.copy(language_model)
        language_model._modules = dict(language_model._modules)
        language_model.pooler = None
    setattr(assembled, prefix, language_model)
    assembled.qa_outputs = linear
    empty = [name for name, parameter in assembled.named_parameters() if parameter.is_meta]
    _refuse(
        bool(empty),
        f"{type(assembled).__name__} has weights that a FARMReader does not keep ({', '.join(empty)}); load it with "
        "Reader.load",
    )
    return assembled


@torch.no_grad()
def _fold_calibration(head: Any, linear: torch.nn.Linear) -> None:
    """Divide the head's weights by the temperature that confidence scores were calibrated with: the logits stay."""
    if head.temperature_for_confidence.item() != 1:
        for parameter in linear.parameters():
            parameter.div_(head.temperature_for_confidence)
        head.temperature_for_confidence.fill_(1)


def _plain_text(path: Path, cache: Path) -> datasets.Dataset:
    """A text file as unlabelled rows without questions, one a line that is not blank."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; check data_dir and train_filename of the processor")

    def batches() -> Iterator[dict[str, Any]]:
        with open(path, encoding="utf-8") as lines:
            found = ((number, text) for number, line in enumerate(lines, 1) if (text := line.strip()))
            while batch := [pair for _, pair in zip(range(_LINES_PER_BATCH), found, strict=False)]:
                yield {
                    "id": [f"line {number}" for number, _ in batch],
                    "title": [path.name] * len(batch),
                    "context": [text for _, text in batch],
                    "question": [""] * len(batch),
                    "answers": [{"text": [], "answer_start": []}] * len(batch),
                    "is_impossible": [False] * len(batch),
                    "labelled": [False] * len(batch),
                }

    try:
        rows, _, _ = cached_table("texts", hash_json("lines", path.name, hash_file(path)), SCHEMA, batches, cache)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); convert it first") from error
    if not len(rows):
        raise DataError(f"{path} holds no text: give a file with one text a line")
    return rows


def _hold_out(examples: datasets.Dataset, share: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Examples to train on and about `share` of them to measure on, with no context in both, the same each time."""
    hashes = np.fromiter(
        (int.from_bytes(hashlib.sha256(context.encode()).digest()[:8], "big") for context in examples["context"]),
        dtype=np.uint64,
        count=len(examples),
    )
    contexts, counts = np.unique(hashes, return_counts=True)  # in the order of their hashes, which is a shuffled one
    last = int(np.searchsorted(counts.cumsum(), share * len(examples)))
    _refuse(
        last + 1 >= len(contexts),
        f"dev_split={share} of {len(contexts)} contexts leaves none to train on; lower it or give a dev_filename",
    )
    held = hashes <= contexts[last]
    return examples.select(np.nonzero(~held)[0]), examples.select(np.nonzero(held)[0])
