"""Reader: a question answering model and its tokenizer, as one thing that answers, is measured and is saved."""

import copy
import functools
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.squad.metrics import require_measurable, squad_metrics, write_predictions
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.data.windows import AnyWindows, PairWindows, Windows
from haystack_distill.errors import DistilError
from haystack_distill.models.adapters import adapters_of
from haystack_distill.models.answers import Answer, PassageAnswer, Prediction, merged
from haystack_distill.models.backends.exported import (
    ExportedModel,
    check_backend,
    find_exported,
    open_exported,
    remove_exported,
)
from haystack_distill.models.calibration import stored_threshold, without_threshold
from haystack_distill.models.early_exit import EarlyExitModel, EarlyExits
from haystack_distill.models.mpnet_attention import use_fused_attention
from haystack_distill.models.span_decoding import SpanDecoder
from haystack_distill.models.trained_weights import load_reader_model, remove_trained, save_trained
from haystack_distill.utils.ahead import one_ahead
from haystack_distill.utils.checks import check_argument, check_type, is_integer, is_number
from haystack_distill.utils.cpu_linear import kept_casts
from haystack_distill.utils.devices import autocast, length_multiple, resolve_device, resolve_precision
from haystack_distill.utils.families import family_of
from haystack_distill.utils.files import expand_user, require_writable
from haystack_distill.utils.model_inputs import model_inputs, takes_token_types
from haystack_distill.utils.progress import progress_bar
from haystack_distill.utils.stopwatch import part
from haystack_distill.utils.transformers_compat import load_without_weights, save_model

ExampleSource: TypeAlias = str | Path | Sequence[str | Path] | datasets.Dataset
# What is called with each batch, and its start and end logits (B, L).
Observe: TypeAlias = Callable[[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], object]

logger = logging.getLogger(__name__)

# Their positions begin after the padding id.
_ROBERTA_LIKE = (
    *("roberta", "xlm-roberta", "camembert", "longformer", "xlm-roberta-xl", "roberta-prelayernorm"),
    *("xmod", "data2vec-text", "ibert"),
)
_PARTS = ("model", "tokenizer", "exported")
_SETTINGS = (
    "window_settings",
    "max_answer_length",
    "no_answer_threshold",
    "batch_size",
    "precision",
    "device",
    "speed",
)
_CPU_TOKENS = 1024  # in a batch: more of them only add padding there, and no longer fit the processor's caches
# What a batch costs on a processor beside its tokens, as that of so many: calls, kernels, threads that wait.
_CPU_CALL_TOKENS = 40
_BATCHED_TOGETHER = 64  # windows whose batches are chosen together
_TOGETHER = 16 * 1024  # tokens of the windows that leave early together: their hidden states are in memory at once
_CHUNK = 1024  # examples whose windows are sorted by length together when predicting


class Reader:
    """An extractive question answering reader.

    Args:
        model: A transformers model for question answering (it returns start and end logits).
        tokenizer: Its fast tokenizer.
        window_settings: How long contexts are cut.
        max_answer_length: Longest answer, in tokens.
        no_answer_threshold: "No answer" wins where its logit exceeds the best span's by more than this. The threshold
            that `haystack-distill calibrate` stored in the reader is taken off that logit before.
        batch_size: Windows of `window_settings.max_seq_len` tokens in a batch; shorter windows come in larger batches.
            On the processor, where large batches are slower, a batch holds 1024 tokens at most, or one window.
        precision: "auto", "fp32", "bf16" or "fp16" for forward passes; see `utils.devices.resolve_precision`.
        device: "auto", "cpu", "cuda", ...
        exported: What runs in place of the model (`Reader.load` with a backend), which then has a shape but no weights.
        speed: For a reader with early exits (`students.early_exit`), from 0 to 1: a window leaves at the first layer
            whose uncertainty is below this. Where several windows are read for one question, a window also leaves where
            its odds of holding the answer are less than this times the best one's. 0 runs all layers, 1 only the first.

    Raises:
        DistilError: The model is not for question answering, or tokenizer and model do not fit, or an exported model
            is asked to run elsewhere than on the processor, or a reader without early exits is given a speed.

    Example:
        >>> reader = Reader.load("deepset/tinyroberta-squad2")  # doctest: +SKIP
        >>> reader.answer("Who wrote it?", "Ada Lovelace wrote it in 1843.")[0].text  # doctest: +SKIP
        'Ada Lovelace'
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window_settings: WindowSettings | None = None,
        max_answer_length: int = 30,
        no_answer_threshold: float = 0.0,
        batch_size: int = 16,
        precision: str = "auto",
        device: str | torch.device = "auto",
        exported: ExportedModel | None = None,
        speed: float = 0.0,
    ) -> None:
        if "start_positions" not in inspect.signature(model.forward).parameters:
            raise DistilError(
                f"{type(model).__name__} is not a question answering model; load it with "
                "AutoModelForQuestionAnswering or Reader.load"
            )
        outputs = getattr(getattr(model, "qa_outputs", None), "out_features", 2)
        if outputs != 2:
            raise DistilError(
                f"the head of {type(model).__name__} has {outputs} outputs per token, a reader has two, start and end; "
                "load it with Reader.load, which gives it a fresh one"
            )
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            raise DistilError(
                f"the tokenizer knows {len(tokenizer)} tokens, the model "
                f"{model.get_input_embeddings().num_embeddings}; they do not belong together"
            )
        use_fused_attention(model)
        self.model = model
        self.untrained: tuple[str, ...] = ()  # names of weights that no file held and no training has set
        self.tokenizer = _without_presets(tokenizer)
        self.exported = exported
        self._set(
            window_settings=window_settings,
            max_answer_length=max_answer_length,
            no_answer_threshold=no_answer_threshold,
            batch_size=batch_size,
            precision=precision,
            device=device,
            speed=speed,
            moving=True,
        )
        self.model.eval()

    def _set(
        self,
        *,
        window_settings: WindowSettings | None,
        max_answer_length: int,
        no_answer_threshold: float,
        batch_size: int,
        precision: str,
        device: str | torch.device,
        speed: float,
        moving: bool = False,
    ) -> None:
        """Check the settings against each other and the model, then take them and move the model to its device, where
        it is not there already; `moving`: anyway, which also puts the weights of an LSTM side by side again.
        """
        for name, value in (("max_answer_length", max_answer_length), ("batch_size", batch_size)):
            check_argument(name, value, is_integer(value, 1), "a whole number of at least 1")
        threshold = no_answer_threshold
        # Infinite: never, or always, no answer.
        check_argument(
            "no_answer_threshold", threshold, is_number(threshold) or threshold in (-math.inf, math.inf), "a number"
        )
        stored_threshold(self.model.config)  # fails now where it is broken
        check_argument("speed", speed, is_number(speed) and 0 <= speed <= 1, "a number from 0 to 1")
        if speed and not isinstance(self.model, EarlyExitModel):
            raise DistilError(
                f"{type(self.model).__name__} has no early exits, so speed={speed} would have no effect; leave it out, "
                "or make a reader that has with students.early_exit"
            )
        check_type("window_settings", window_settings, WindowSettings)
        window_settings = window_settings or WindowSettings()
        positions = position_limit(self.model)
        if positions is not None and window_settings.max_seq_len > positions:
            raise DistilError(
                f"max_seq_len {window_settings.max_seq_len} is more than the {positions} positions that "
                f"{type(self.model).__name__} knows; lower max_seq_len"
            )
        resolved = resolve_device("cpu" if self.exported and str(device) == "auto" else device)
        # What is exported has settled its number format by now: ONNX as it was exported, OpenVINO as it was opened.
        if self.exported is not None and (resolved.type != "cpu" or precision not in ("auto", self.exported.precision)):
            raise DistilError(
                f"backend {self.exported.backend!r} runs on the processor and in {self.exported.precision}; leave "
                "device and precision out, or use backend='torch'"
            )
        if self.exported is not None:
            precision_here = self.exported.precision
        else:
            precision_here = resolve_precision(precision, resolved, self.model.config.model_type)
        self.window_settings = window_settings
        self.max_answer_length = max_answer_length
        self.no_answer_threshold = float(no_answer_threshold)
        self.batch_size = batch_size
        self.device = resolved
        self.speed = float(speed)
        self._asked_precision = precision  # "auto" may be another one for another model or device
        self.precision = precision_here
        if self.exported is None:
            here = self.model.device
            if moving or here.type != resolved.type or resolved.index not in (None, here.index):
                self.model.to(self.device)  # not each time: to walk through all weights for each query takes a while

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        backend: str = "torch",
        num_threads: int | None = None,
        passages: int | None = None,
        token: str | None = None,
        revision: str | None = None,
        **settings: Any,
    ) -> "Reader":
        """Load a Hugging Face model directory or hub name in fp32.

        Only safetensors weights are read, and no code that comes with a model is ever run.

        Args:
            name_or_path: What `save` wrote, or a name on the hub.
            backend: "torch"; or "onnx", "onnx-int8", "openvino" and "openvino-int8", faster on the processor, for a
                reader that was exported (`export.exporting.export_reader`). Such a reader answers and is measured, but
                cannot learn or be saved. `precision` is for "torch" and OpenVINO. "auto" is the fastest of these here,
                measured once and remembered, int8 only where its export lost little F1 (`backends.choice`).
            num_threads: Processor threads that a forward pass may use. With "torch" this is a setting of the whole
                process.
            passages: For backend "auto": passages that are read for a question; 10 by default.
            token: What opens a private model on the hub.
            revision: Branch, tag or commit of a model on the hub.
            settings: The constructor's.

        Raises:
            DistilError: Nothing there, or not a model and a fast tokenizer, or it was not exported.
        """
        name = os.path.expanduser(name_or_path)
        hub: dict[str, Any] = {"token": token, "revision": revision}
        check_backend(backend)
        check_argument(
            "num_threads", num_threads, num_threads is None or is_integer(num_threads, 1), "at least 1, or None"
        )
        valid = passages is None or is_integer(passages, 1)
        check_argument("passages", passages, valid, "a whole number of at least 1, or None")
        if backend == "auto":
            if resolve_device(settings.get("device", "auto")).type != "cpu":
                return cls.load(name, num_threads=num_threads, **hub, **settings)
            from haystack_distill.models.backends.choice import PASSAGES, fastest_reader

            return fastest_reader(
                name,
                lambda one: cls.load(name, backend=one, num_threads=num_threads, **hub, **settings),
                num_threads=num_threads,
                passages=passages or PASSAGES,
                settings=settings,
                **hub,
            )
        if passages is not None:
            raise DistilError(f"passages has no effect with backend {backend!r}; leave it out, or use backend='auto'")
        if backend != "torch":
            model, tokenizer = load_without_weights(AutoModelForQuestionAnswering, name, "reader", **hub)
            if isinstance(model, EarlyExitModel):
                raise DistilError(f"{name} has early exits, which run in PyTorch alone; leave backend={backend!r} out")
            exported = open_exported(
                find_exported(name, backend, **hub),
                backend,
                num_threads=num_threads,
                precision=settings.get("precision", "auto"),
                model_type=model.config.model_type,
            )
            return cls(model, tokenizer, exported=exported, **settings)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        model, tokenizer, fresh = load_reader_model(name, **hub)
        if fresh:
            logger.warning("%s holds no weights for %s: they start random and must be trained", name, ", ".join(fresh))
        reader = cls(model, tokenizer, **settings)
        reader.untrained = tuple(fresh)
        return reader

    @property
    def backend(self) -> str:
        """What runs the model: "torch", or the backend that the reader was loaded with."""
        return "torch" if self.exported is None else self.exported.backend

    @property
    def n_parameters(self) -> int:
        """Weights of the model, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def cut(self, examples: datasets.Dataset, *, cache_dir: str | Path | None = None) -> Windows:
        """The windows of `examples` as this reader sees them, kept in the cache."""
        with part("tokenising"):
            return Windows.cut(
                examples,
                self.tokenizer,
                self.window_settings,
                token_types=takes_token_types(self.model),
                cache_dir=cache_dir,
            )

    def cut_pairs(self, pairs: Sequence[tuple[str, str]], question_of: Sequence[int] | None = None) -> PairWindows:
        """The windows of (question, context) pairs as this reader sees them, in memory.

        Args:
            pairs: Questions and contexts.
            question_of: The question of each pair, as a number that pairs share whose answers compete; None: each is a
                question of its own. See `speed`.
        """
        with part("tokenising"):
            return PairWindows.cut(
                pairs,
                self.tokenizer,
                self.window_settings,
                token_types=takes_token_types(self.model),
                question_of=question_of,
            )

    def answer(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        *,
        allow_no_answer: bool = True,
        speed: float | None = None,
    ) -> list[Answer]:
        """The best answers to a question, best first.

        Args:
            question: The question.
            context: Any length; cut into windows and merged.
            top_k: How many answers at most; they differ in their span.
            allow_no_answer: Whether "no answer" may be among them.
            speed: Another speed than the reader's for this call; see `Reader`.
        """
        return self.answer_batch([(question, context)], top_k, allow_no_answer=allow_no_answer, speed=speed)[0]

    def answer_batch(
        self,
        pairs: Iterable[tuple[str, str]],
        top_k: int = 1,
        *,
        allow_no_answer: bool = True,
        speed: float | None = None,
    ) -> list[list[Answer]]:
        """`answer` for many (question, context) pairs at once, in their order."""
        check_argument("top_k", top_k, is_integer(top_k, 1), "at least 1 and whole")
        pairs = list(pairs)
        for pair in pairs:
            _require_texts(pair, "question and context")
        predictions = self.at_speed(speed).predict_pairs(pairs, top_k)
        if allow_no_answer:
            return [prediction.ranked(top_k, self.no_answer_threshold) for prediction in predictions]
        return [prediction.answers[:top_k] for prediction in predictions]

    def answer_passages(
        self,
        question: str,
        passages: Iterable[str],
        top_k: int = 1,
        *,
        allow_no_answer: bool = True,
        speed: float | None = None,
    ) -> list[PassageAnswer]:
        """The best answers to a question in several passages, best first, in one ranking.

        A reader with early exits then drops passages that are much less likely to hold the answer than another one; see
        `speed` of `Reader`.

        Args:
            question: The question.
            passages: The passages, of any length.
            top_k: How many answers at most.
            allow_no_answer: Whether "no answer" may be among them.
            speed: Another speed than the reader's for this call.

        Raises:
            DistilError: There are no passages, or the question or a passage is empty.
        """
        check_argument("top_k", top_k, is_integer(top_k, 1), "at least 1 and whole")
        if isinstance(passages, str):
            raise DistilError("passages must be a list of texts; give a single one as [passage], or use answer()")
        passages = list(passages)
        if not passages:
            raise DistilError("there are no passages; give at least one passage with text")
        _require_texts((question, *passages), "question and passages")
        windows = self.cut_pairs([(question, passage) for passage in passages], [0] * len(passages))
        found = merged(list(self.at_speed(speed).predict_windows(windows, top_k)))
        ranked = found.ranked(top_k, self.no_answer_threshold) if allow_no_answer else found.answers[:top_k]
        return [answer for answer in ranked if isinstance(answer, PassageAnswer)]

    def predict_pairs(self, pairs: Iterable[tuple[str, str]], top_k: int = 1) -> list[Prediction]:
        """Spans and no-answer of each (question, context) pair, in order; nothing is written to disk."""
        pairs = list(pairs)
        if not pairs:
            return []
        return list(self.predict_windows(self.cut_pairs(pairs), top_k))

    def predict(self, source: ExampleSource, top_k: int = 1) -> Iterator[Prediction]:
        """Spans and no-answer of every example of a file, data set or list of files, in order."""
        return self.predict_windows(self.cut(load_examples(source)), top_k)

    def predict_windows(
        self,
        windows: AnyWindows,
        top_k: int = 1,
        examples: range | None = None,
        advance: Callable[[int], object] | None = None,
        observe: Observe | None = None,
    ) -> Iterator[Prediction]:
        """Spans and no-answer of every example that `windows` were cut from, or of a range of them, in order.

        `advance` is called with the number of windows of each batch, to show progress; `observe` with what
        `answer_logits` yields for each batch.
        """
        examples = range(windows.n_examples) if examples is None else examples
        for chunk in self._chunks(windows, examples):
            contexts = windows.contexts(chunk.start, chunk.stop)
            decoder = SpanDecoder(windows, chunk, top_k, self.max_answer_length)
            for batch, starts, ends in self.answer_logits(
                windows, windows.windows_of_examples(chunk.start, chunk.stop)
            ):
                with part("spans"):
                    decoder.add(batch, starts, ends)
                if observe is not None:
                    observe(batch, starts, ends)
                if advance is not None:
                    advance(len(starts))
            for example, context in zip(chunk, contexts, strict=True):
                with part("spans"):
                    prediction = decoder.prediction(example, context, top_k)
                yield prediction

    def _chunks(self, windows: AnyWindows, examples: range) -> Iterator[range]:
        """The examples in parts; at a speed above 0, where they compete, those of a question stay together."""
        first = examples.start
        while first < examples.stop:
            end = min(first + _CHUNK, examples.stop)
            if self.speed and end < examples.stop:
                heads = np.searchsorted(windows.example_of, np.arange(first, examples.stop))
                questions = windows.question_of[heads]
                others = np.flatnonzero(questions[end - first :] != questions[end - first - 1])
                end = end + int(others[0]) if len(others) else examples.stop
            yield range(first, end)
            first = end

    def answer_logits(
        self, windows: AnyWindows, selection: Sequence[int] | range
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
        """`logits` as answers are made of them; see `as_answered`."""
        for batch, starts, ends in self.logits(windows, selection):
            yield batch, *self.as_answered(windows, starts, ends)

    def as_answered(
        self, windows: AnyWindows, starts: torch.Tensor, ends: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits (B, L) with the stored threshold taken off the no-answer's, half off each."""
        half = (stored_threshold(self.model.config) or 0.0) / 2
        if not half:
            return starts, ends
        position = windows.template.no_answer_position
        return without_threshold(starts, position, half), without_threshold(ends, position, half)

    def logits(
        self, windows: AnyWindows, selection: Sequence[int] | range
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
        """Forward passes over some windows, longest first, in batches of about equal numbers of tokens.

        Yields:
            The batch (on the CPU), and its start and end logits (B, L), float32 on the CPU. With a `speed` the batch
            has "layers" (B,): how many layers ran for each window; only windows of neighbouring questions are then in
            the order of their lengths.
        """
        if self.exported is None and (self.model.training or self.model.base_model.training):
            self.model.eval()  # not each time: to walk through all modules for each question takes a while
        chosen = np.asarray(selection, dtype=np.int64)
        if self.speed:
            yield from self._early_logits(windows, chosen)
            return
        # For this pass alone: the model may be trained before the next one.
        casts = kept_casts(self.device, self.precision if self.exported is None else "fp32", self.model)
        batches = self._batches(windows, chosen)
        if self.exported is None and self.device.type != "cpu":
            yield from self._logits_on_device(batches)
            return
        for batch in batches:
            with casts, part("model"):  # not while the caller has control
                found = self.forward(model_inputs(batch))
            yield batch, *found

    def _logits_on_device(
        self, batches: Iterator[dict[str, torch.Tensor]]
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
        """As `logits`: a GPU computes a batch while the next one is made and the caller has the one before it."""
        waiting, ahead = None, one_ahead(batches)
        while True:
            with part("batches"):  # what is left to wait for
                batch = next(ahead, None)
            if batch is None:
                break
            with part("model"):
                started = batch, self._launch(model_inputs(batch))
            if waiting is not None:
                yield self._landed(*waiting)
            waiting = started
        if waiting is not None:
            yield self._landed(*waiting)

    def _landed(
        self, batch: dict[str, torch.Tensor], found: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        with part("model"):
            starts, ends = found.cpu()
        return batch, starts, ends

    def _batches(self, windows: AnyWindows, chosen: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of some windows, longest first."""
        ordered = chosen[np.argsort(-windows.lengths[chosen], kind="stable")]
        multiple = length_multiple(self.precision) if self.exported is None else self.exported.length_multiple
        lengths = (-(-windows.lengths[ordered] // multiple) * multiple).tolist()
        overhead = _CPU_CALL_TOKENS if self.device.type == "cpu" else None
        first = 0
        for size in batch_sizes(lengths, self._batch_tokens, overhead):
            with part("batches"):
                batch = windows.collate(windows.__getitems__(ordered[first : first + size].tolist()), multiple)
            yield batch
            first += size

    @property
    def _batch_tokens(self) -> int:
        """The tokens of a batch, padding included, at most."""
        tokens = self.batch_size * self.window_settings.max_seq_len
        return min(tokens, _CPU_TOKENS) if self.device.type == "cpu" else tokens

    def _early_logits(
        self, windows: AnyWindows, chosen: np.ndarray
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
        """As `logits`, at a speed above 0: questions one after the other, so that their windows can compete."""
        by_question = chosen[np.argsort(windows.question_of[chosen], kind="stable")]
        tokens = np.cumsum(windows.lengths[by_question])
        odds: dict[int, float] = {}
        first = 0
        while first < len(by_question):
            # As many windows as run together. A question with more of them competes with what it found before.
            last = int(np.searchsorted(tokens, (tokens[first - 1] if first else 0) + _TOGETHER, "right"))
            last = self._whole_questions(windows.question_of[by_question], first, max(first + 1, last))
            batches = list(self._batches(windows, by_question[first:last]))
            questions = [windows.question_of[batch["window"].numpy()].tolist() for batch in batches]
            with part("model"):
                found = self._exit_early([model_inputs(batch) for batch in batches], questions, odds)
            for batch, one in zip(batches, found, strict=True):
                yield batch | {"layers": one.layers}, one.start_logits, one.end_logits
            first = last

    @staticmethod
    def _whole_questions(question_of: np.ndarray, first: int, last: int) -> int:
        """Where windows from `first` on may end, at `last` or before it, so that no question is cut in two."""
        if last == len(question_of) or question_of[last - 1] != question_of[last]:
            return last
        begin = int(np.searchsorted(question_of, question_of[last]))
        return begin if begin > first else last

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits (B, L) of a padded batch, float32 on the CPU, without gradients."""
        if self.exported is not None:
            return self.exported(inputs)
        if self.speed:
            return self._exit_early([inputs])[0][:2]
        starts, ends = self._launch(inputs).cpu()
        return starts, ends

    def _launch(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The start and end logits (2, B, L), float32 on the device, which may still be computing them."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            output = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
        return torch.stack([output.start_logits, output.end_logits]).float()

    def _exit_early(
        self,
        batches: Sequence[dict[str, torch.Tensor]],
        questions: Sequence[Sequence[int]] | None = None,
        odds: dict[int, float] | None = None,
    ) -> list[EarlyExits]:
        """As `forward`, of a reader with early exits at its speed; see `EarlyExitModel.exit_early`."""
        assert isinstance(self.model, EarlyExitModel)
        # Not in inference mode, in which autocast would convert the weights of a layer anew for each batch.
        with torch.no_grad(), autocast(self.device, self.precision):
            placed = [{name: tensor.to(self.device) for name, tensor in inputs.items()} for inputs in batches]
            found = self.model.exit_early(placed, self.speed, questions, odds, self._batch_tokens)
        return [EarlyExits(one.start_logits.float().cpu(), one.end_logits.float().cpu(), one.layers) for one in found]

    def at_speed(self, speed: float | None) -> "Reader":
        """This reader with another `speed`, sharing its weights; this reader itself with None."""
        return self if speed is None else self.replace(speed=speed)

    def evaluate(
        self, source: ExampleSource, *, predictions_path: str | Path | None = None, progress: bool = True
    ) -> dict[str, float]:
        """SQuAD exact match and F1 on a file or data set, in per cent.

        "No answer" is allowed exactly where the data holds unanswerable questions (SQuAD 2.0).

        Args:
            source: What `data.squad.load.load_examples` takes.
            predictions_path: Where to write the predictions as `{id: text}`, the official format.
            progress: Whether to show a progress bar.

        Returns:
            What `data.squad.metrics.squad_metrics` returns.
        """
        examples = load_examples(source)
        return self.evaluate_windows(self.cut(examples), predictions_path=predictions_path, progress=progress)

    def evaluate_windows(
        self,
        windows: Windows,
        *,
        predictions_path: str | Path | None = None,
        progress: bool = True,
        observe: Observe | None = None,
    ) -> dict[str, float]:
        """`evaluate` on windows that are cut already; `observe` is as for `predict_windows`."""
        if predictions_path is not None:
            require_writable(expand_user(predictions_path), directory=False)
        require_measurable(windows.examples)
        with progress_bar("evaluation", len(windows), "windows", visible=progress) as bar:
            predictions = list(self.predict_windows(windows, advance=bar.advance, observe=observe))
        return self.metrics_of(windows.examples, predictions, predictions_path=predictions_path)

    def metrics_of(
        self,
        examples: datasets.Dataset,
        predictions: Sequence[Prediction],
        *,
        predictions_path: str | Path | None = None,
    ) -> dict[str, float]:
        """`evaluate` with predictions that are there already, one for each example."""
        answerable_only = not any(examples["is_impossible"])
        found = dict(zip(examples["id"], predictions, strict=True))
        texts = {key: one.answers[0].text if one.answers else "" for key, one in found.items()}
        gaps = {key: one.no_answer_gap for key, one in found.items()}
        threshold = None if answerable_only else self.no_answer_threshold
        if predictions_path is not None:
            silent = {key for key, gap in gaps.items() if threshold is not None and gap > threshold}
            write_predictions({key: "" if key in silent else text for key, text in texts.items()}, predictions_path)
        # The best answers go in, those below the threshold too: the search for the best threshold needs them.
        scores = None if answerable_only else gaps
        return squad_metrics(examples, texts, scores, no_answer_threshold=threshold)

    def save(self, directory: str | Path, *, only_trained: bool = False) -> Path:
        """Write a plain Hugging Face model directory: config.json, model.safetensors and the tokenizer's files.

        Everything is written aside first; files of the same names that are there already are replaced, others stay,
        but for what was exported from the weights that are replaced.

        A reader with adapters is no plain model: only the weights that its base lacks or has other values of are
        written, with a reference to the base, where that can be loaded from the place that the reader came from.
        `load` puts the two together.

        Args:
            directory: Where to write.
            only_trained: Save a plain model in that way too.

        Raises:
            DistilError: The reader is an exported one, or `only_trained` is set and the base cannot be loaded.
        """
        self.require_weights()
        replacing = functools.partial(remove_exported, expand_user(directory))
        if only_trained or adapters_of(self.model):
            return save_trained(directory, self.model, self.tokenizer, base_required=only_trained, replacing=replacing)
        saved = save_model(directory, self.model, self.tokenizer, replacing)
        remove_trained(saved)
        return saved

    def require_weights(self) -> None:
        """Raise a DistilError if this is an exported reader."""
        if self.exported is not None:
            raise DistilError(
                f"{self.exported.path} can answer, but not be trained, copied or saved, and gives no hidden states: "
                "load the reader with backend='torch', on the command line without the option that chose another"
            )

    def require_trained(self) -> None:
        """Raise a DistilError if this reader's answers are random: some of its weights are untrained."""
        require_trained(self.untrained)

    def replace(self, **changes: Any) -> "Reader":
        """A reader with some of the constructor's arguments changed, checked as the constructor checks them.

        It shares the weights of this one, unless `model` is changed; another `device` moves the weights of both. The
        weights of another model count as trained.

        Args:
            changes: Arguments of the constructor, `model` and `tokenizer` included.

        Raises:
            DistilError: No such argument, a value that the constructor refuses, or another model for an exported
                reader.

        Example:
            >>> short = reader.replace(window_settings=WindowSettings(128))  # doctest: +SKIP
        """
        if unknown := changes.keys() - {*_SETTINGS, *_PARTS}:
            raise DistilError(
                f"a reader has no setting {', '.join(sorted(unknown))}; it has {', '.join((*_PARTS, *_SETTINGS))}"
            )
        own = {name: getattr(self, name) for name in _SETTINGS} | {"precision": self._asked_precision}
        settings = {name: changes.get(name, value) for name, value in own.items()}
        if changes.keys() & {*_PARTS}:
            if "model" in changes:
                self.require_weights()
            replaced = Reader(**{name: changes.get(name, getattr(self, name)) for name in _PARTS}, **settings)
            if "model" not in changes:
                replaced.untrained = self.untrained
        else:
            replaced = copy.copy(self)  # not through __init__, which copies the tokenizer: too slow for every query
            replaced._set(**settings)
        if "device" in changes and replaced.exported is None and replaced.model is self.model:
            self._set(**own | {"device": changes["device"]})  # this one's weights have been moved
        return replaced

    def copy(self) -> "Reader":
        """An independent reader with the same weights and settings."""
        self.require_weights()
        copied = self.replace(model=copy.deepcopy(self.model))
        copied.untrained = self.untrained
        return copied


def batch_sizes(lengths: Sequence[int], tokens: int, overhead: int | None) -> Iterator[int]:
    """How many windows each batch has, so that computing all of them costs least.

    A batch costs its tokens, padding included, and an overhead: few windows of one length are padded less, and many are
    fewer batches.

    Args:
        lengths: Of the windows, longest first, as they are padded alone.
        tokens: The most tokens of a batch of several windows.
        overhead: The cost of a batch beside its tokens, as that of so many tokens; None: so much that batches are as
            large as they may be.
    """
    if overhead is None:
        first = 0
        while first < len(lengths):
            yield (size := max(1, tokens // lengths[first]))
            first += size
        return
    for begin in range(0, len(lengths), _BATCHED_TOGETHER):
        some = lengths[begin : begin + _BATCHED_TOGETHER]
        cheapest, sizes = [0] + [0] * len(some), [0] * (len(some) + 1)  # of the windows from each place on
        for first in range(len(some) - 1, -1, -1):
            most = max(1, min(tokens // some[first], len(some) - first))
            costs = [size * some[first] + cheapest[first + size] for size in range(1, most + 1)]
            cheapest[first] = overhead + min(costs)
            sizes[first] = 1 + costs.index(min(costs))
        first = 0
        while first < len(some):
            yield sizes[first]
            first += sizes[first]


def _require_texts(texts: Iterable[Any], name: str) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise DistilError(f"{name} must be texts, not {type(text).__name__}; leave out what has none")
        if not text.strip():
            raise DistilError(f"{name} must not be empty; leave out what has no text")


def _without_presets(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with no truncation or padding left over from whoever saved it: windows are ours to cut."""
    if getattr(tokenizer, "is_fast", False):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def require_trained(untrained: Sequence[str]) -> None:
    """Check that a teacher's answers are not random.

    Args:
        untrained: The names of its untrained weights.

    Raises:
        DistilError: There are any.
    """
    if untrained:
        raise DistilError(
            f"the teacher's answers are random: its files hold no weights for {', '.join(untrained)}; take a reader "
            "that was trained on questions, or train this one first"
        )


def position_limit(model: PreTrainedModel) -> int | None:
    """Positions that a model has embeddings for, or None where it sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None or limit <= 0:
        return None
    return limit - first_position(model.config)


def first_position(config: PretrainedConfig) -> int:
    """The number of the first token's position."""
    family = family_of(config)
    if family == "mpnet":
        return 2  # after padding id 1, whatever the tokenizer's is
    return config.pad_token_id + 1 if family in _ROBERTA_LIKE else 0
