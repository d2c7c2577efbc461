"""Haystack 1 (farm-haystack 1.26): a fast reader node for distilled readers.

`DistilledReader` stands where a FARMReader stands in a pipeline and returns the same answers, scored as it scores. What
is slow about a FARMReader is replaced (every window padded to `max_seq_len`, a whole table of start and end logits for
each window, a Python object for each step); how answers are chosen and put together is FARMReader's own code.
"""

import contextlib
import functools
import itertools
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import huggingface_hub
import numpy as np
import torch

try:
    from haystack import Document
    from haystack.modeling.data_handler.inputs import QAInput
    from haystack.modeling.model.prediction_head import QuestionAnsweringHead
    from haystack.modeling.model.predictions import QACandidate, QAPred
    from haystack.nodes import FARMReader
    from haystack.nodes.reader.base import BaseReader
except ImportError as error:
    raise ImportError(
        "haystack_distill.integrations.farm_reader needs Haystack 1: pip install 'haystack-distill[farm]', in an "
        "environment without haystack-ai"
    ) from error

from haystack_distill.data.squad.validation import replace_lone_surrogates
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.data.windows import AnyWindows
from haystack_distill.errors import DistilError
from haystack_distill.models.reader import Reader
from haystack_distill.models.span_decoding import separate_spans, window_spans
from haystack_distill.utils.model_inputs import model_inputs

__all__ = ["DistilledReader"]

logger = logging.getLogger(__name__)

_MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "onnx/*", "openvino/*"]
_NO_ANSWER = 0  # the position where FARM reads the no-answer
# `model_kwargs` that change no answer; `torch_dtype` is honoured, everything else refused.
_HARMLESS_MODEL_ARGUMENTS = frozenset({"attn_implementation", "device_map", "low_cpu_mem_usage", "use_safetensors"})


class ReadsText:
    """Prediction as FARMReader's, where documents without text and overlaps that only one side records do no harm.

    What holds no text (a blank document, a table) has no answers and changes none of the others'. An empty query has no
    answers either.
    """

    def predict(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """As FARMReader; documents without text are left out, and an empty query has no answers."""
        query = replace_lone_surrogates(query)  # tokenizers refuse half a surrogate pair
        return FARMReader.predict(self, query, _readable(query, documents), top_k)  # type: ignore[arg-type]

    def predict_batch(
        self,
        queries: list[str],
        documents: list[Document] | list[list[Document]],
        top_k: int | None = None,
        batch_size: int | None = None,
    ) -> dict[str, Any]:
        """As FARMReader; documents without text and empty queries have no answers, in their place."""
        queries = [replace_lone_surrogates(query) for query in queries]

        def ask(queries: list[str], lists: list[Document] | list[list[Document]]) -> dict[str, Any]:
            return FARMReader.predict_batch(self, queries, lists, top_k, batch_size)  # type: ignore[arg-type]

        if documents and isinstance(documents[0], list):
            each = queries * len(documents) if len(queries) == 1 else queries
            if len(each) != len(documents):
                return ask(queries, documents)  # for its error
            return ask(queries, [_readable(query, some) for query, some in zip(each, documents, strict=True)])  # type: ignore[arg-type]
        pairs = [_readable(query, [one]) for query in queries for one in documents]  # type: ignore[list-item]
        if all(pairs):
            return ask(queries, documents)
        # A list of its own for each pair: in one list, the answers of those behind it would move up.
        result = ask([query for query in queries for _ in documents], pairs)
        result["queries"] = queries
        if len(queries) > 1:
            answers = iter(result["answers"])
            result["answers"] = [list(itertools.islice(answers, len(documents))) for _ in queries]
        return result

    def get_params(self, return_defaults: bool = False) -> dict[str, Any]:
        """The arguments that the node was made with, as they go into a pipeline's YAML."""
        if _is_called_by("save_to_yaml"):  # `get_params` is asked at other times too, when this would be noise
            logger.warning(
                "the YAML names %s, which Haystack does not know by itself: where it is loaded, import %s first",
                type(self).__name__,
                type(self).__module__,
            )
        return super().get_params(return_defaults)  # type: ignore[misc]

    def _deduplicate_predictions(self, predictions: list[QAPred], documents: list[Document]) -> list[QAPred]:
        """Of an answer that two overlapping documents give, keep the one with the higher confidence."""
        overlaps = self._identify_overlapping_docs(documents)
        if not overlaps:
            return predictions
        place = {prediction.id: number for number, prediction in enumerate(predictions)}
        worse = set()
        for number, here in enumerate(predictions):
            for overlap in overlaps.get(here.id, []):
                there = place.get(overlap["doc_id"], -1)  # FARMReader makes nothing of a document without tokens
                if there <= number:  # each pair once
                    continue
                back = next(one for one in overlaps[overlap["doc_id"]] if one["doc_id"] == here.id)
                for mine, other in itertools.product(_spans_in(here, overlap), _spans_in(predictions[there], back)):
                    if FARMReader._is_duplicate_answer(mine, overlap, other, back):
                        worse.add(mine if mine.confidence < other.confidence else other)
        for prediction in predictions:
            prediction.prediction = [one for one in prediction.prediction if one not in worse]
        return predictions

    @staticmethod
    def _identify_overlapping_docs(documents: list[Document]) -> dict[str, list[dict[str, Any]]]:
        """Overlaps of each document with others of the list, where both record which characters they share."""
        named = {
            one.id: {
                overlap["doc_id"]: overlap
                for overlap in one.meta.get("_split_overlap") or []
                if overlap.get("doc_id") not in (None, one.id) and overlap.get("range")
            }
            for one in documents
        }
        mutual = {
            key: [overlap for other, overlap in overlaps.items() if key in named.get(other, {})]
            for key, overlaps in named.items()
        }
        return {key: overlaps for key, overlaps in mutual.items() if overlaps}


def _readable(query: str, documents: list[Document]) -> list[Document]:
    """The documents in which answers to a query can be looked for."""
    return [one for one in documents if _holds_text(one)] if query.strip() else []


def _holds_text(document: Document) -> bool:
    if not isinstance(document, Document):
        return True  # FARMReader raises the error
    if not isinstance(document.content, str):
        _warn_of(document.content_type)
        return False
    return bool(document.content) and not document.content.isspace()


@functools.cache  # once is enough: a table may come with every query
def _warn_of(content_type: str) -> None:
    logger.warning(
        "documents of type %r are left out: this reader reads text; give them to a TableReader", content_type
    )


def _is_called_by(function: str) -> bool:
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


def _spans_in(prediction: QAPred, overlap: dict[str, Any]) -> list[QACandidate]:
    return [
        one
        for one in prediction.prediction
        if one.answer_type == "span" and FARMReader._qa_cand_in_overlap(one, overlap)
    ]


class _Elsewhere:
    """A method of FARMReader that this node does not have: looking it up raises an error that names the alternative."""

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        raise AttributeError(f"DistilledReader only answers, it has no {self.name}: {self.remedy}")


_TRAINS = "train with haystack_distill.integrations.farm.DistilFARMReader or the command `haystack-distill`"
_MEASURES = (
    "measure with Pipeline.eval(), with haystack_distill.Reader.load(...).evaluate(...), or with "
    "haystack_distill.integrations.farm.DistilFARMReader, which has it"
)


class DistilledReader(ReadsText, BaseReader):
    """Finds answers to a query in documents, as FARMReader does and scored as it scores, only faster.

    One difference: a confidence leaves padding out of its softmax, where FARMReader counts it in. For documents much
    shorter than `max_seq_len` the two differ (on sentences of SQuAD by up to 0.15), and so may the order of answers of
    different documents. `farm_confidences=True` gives FARMReader's, at the cost of computing on padding; logits
    (`use_confidence_scores=False`) are FARMReader's always.

    Arguments are FARMReader's, in its order, and mean the same. Without effect, and named in a warning, are several
    processes and more than one device; there is no progress bar. New are `backend`, `num_threads` (see `Reader.load`),
    `precision` and `farm_confidences`; training is FARMReader's and `DistilFARMReader`'s. Scores are calibrated where
    the reader is: `haystack-distill calibrate` does it in the weights. Several threads may call it at once.

    In pipelines (YAML): `type: DistilledReader`; a process that loads the YAML has to import this module first.

    Args:
        model_name_or_path: A reader directory (what `Reader.save` wrote, or a Hugging Face one) or a name on the hub.
        model_version: Branch, tag or commit of a model on the hub.
        context_window_size: Characters around an answer that are returned with it.
        batch_size: Windows of `max_seq_len` tokens in a batch, or more that are shorter.
        use_gpu: Whether to use a GPU if there is one ("torch" only).
        devices: The first of these is used, unless `use_gpu` is False.
        no_ans_boost: Added to the no-answer's logit, from which the threshold is taken that `haystack-distill
            calibrate` stored in the reader.
        return_no_answer: Whether to return a no-answer among the answers.
        top_k: Answers at most.
        top_k_per_candidate: Answers from one document at most.
        top_k_per_sample: Answers from one window at most.
        num_processes: Without effect: tokenizer and model have threads.
        max_seq_len: Tokens of a window at most, query included.
        doc_stride: Document tokens between the starts of two neighbouring windows.
        progress_bar: Without effect: there is none.
        duplicate_filtering: Of the answers of a window, none starts or ends within so many tokens of a better one's
            start or end; -1 keeps all.
        use_confidence_scores: Whether scores are confidences (0 to 1), by which answers then are ranked, or logits.
        confidence_threshold: Leave out answers with less confidence.
        proxies: Proxy servers to download a model through.
        local_files_only: Whether to take a model of the hub from its local cache only.
        force_download: Whether to download a model of the hub again.
        use_auth_token: What opens a private model on the hub, or True for the token of this computer.
        max_query_length: Tokens of the query that are kept.
        preprocessing_batch_size: Pairs of query and document that are computed at once; None: all, as always at a
            speed above 0.
        model_kwargs: `torch_dtype` is another way to set `precision`; what else changes no answer is without effect.
        backend: "torch"; or "onnx", "onnx-int8", "openvino" and "openvino-int8" for a reader that was exported; or
            "auto", the fastest of these here (see `Reader.load`).
        num_threads: Processor threads that a forward pass may use.
        precision: "fp32", as FARMReader computes, "auto", "bf16" or "fp16"; see `utils.devices.resolve_precision`.
        farm_confidences: Whether windows are padded and padding is counted as FARMReader does. On the same device and
            in fp32, scores are then FARMReader's to the bit. Not with "onnx-int8" and "auto".
        passages: For backend "auto": documents that a query is asked of, as a rule; 10 by default.
        speed: For a reader with early exits, from 0 (all layers run) to 1; see `Reader`. `run`, `run_batch`, `predict`
            and `predict_batch` take another one for their call.

    Raises:
        DistilError: Nothing there, or not a question answering model, or it was not exported; windows longer than the
            model's positions, or so far apart that text would be skipped; `model_kwargs` that would change answers.

    Example:
        >>> reader = DistilledReader("my-student", backend="onnx-int8")  # doctest: +SKIP
        >>> pipeline = ExtractiveQAPipeline(reader, retriever)  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name_or_path: str,
        model_version: str | None = None,
        context_window_size: int = 150,
        batch_size: int = 50,
        use_gpu: bool = True,
        devices: list | None = None,
        no_ans_boost: float = 0.0,
        return_no_answer: bool = False,
        top_k: int = 10,
        top_k_per_candidate: int = 3,
        top_k_per_sample: int = 1,
        num_processes: int | None = None,
        max_seq_len: int = 256,
        doc_stride: int = 128,
        progress_bar: bool = True,
        duplicate_filtering: int = 0,
        use_confidence_scores: bool = True,
        confidence_threshold: float | None = None,
        proxies: dict | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_auth_token: str | bool | None = None,
        max_query_length: int = 64,
        preprocessing_batch_size: int | None = None,
        model_kwargs: dict | None = None,
        backend: str = "torch",
        num_threads: int | None = None,
        precision: str = "fp32",
        farm_confidences: bool = False,
        speed: float = 0.0,
        passages: int | None = None,
    ) -> None:
        super().__init__()
        self.model_name_or_path = model_name_or_path
        self.return_no_answers = return_no_answer
        self.top_k = top_k
        self.top_k_per_candidate = top_k_per_candidate
        self.use_confidence_scores = use_confidence_scores
        self.confidence_threshold = confidence_threshold
        self.preprocessing_batch_size = preprocessing_batch_size
        self.progress_bar = progress_bar
        if farm_confidences and backend in ("onnx-int8", "auto"):
            raise DistilError(
                "farm_confidences counts padding, which onnx-int8 leaves out; take backend 'torch', 'onnx' or "
                "'openvino', or leave farm_confidences out"
            )
        rest = set(model_kwargs or {}) - {"torch_dtype"}
        if not rest <= _HARMLESS_MODEL_ARGUMENTS:
            names = ", ".join(sorted(rest - _HARMLESS_MODEL_ARGUMENTS))
            raise DistilError(f"model_kwargs: {names} is not done here; leave it out, or use FARMReader")
        idle = {
            "num_processes": (num_processes or 0) > 1,
            "devices": len(devices or []) > 1,
            "model_kwargs": bool(rest),
        }
        if any(idle.values()):
            names = ", ".join(name for name, given in idle.items() if given)
            logger.warning("one process answers on one device with the model as it is; without effect: %s", names)
        device = "cpu"
        if use_gpu and (devices or backend in ("torch", "auto")):
            device = str(devices[0]) if devices else "auto"
        reader = Reader.load(
            _fetched(
                model_name_or_path,
                revision=model_version,
                token=use_auth_token,
                proxies=proxies,
                local_files_only=local_files_only,
                force_download=force_download,
            ),
            backend=backend,
            num_threads=num_threads,
            passages=passages,
            token=use_auth_token,  # type: ignore[arg-type]
            revision=model_version,
            window_settings=_window_settings(max_seq_len, doc_stride, max_query_length),
            batch_size=batch_size,
            precision=_precision((model_kwargs or {}).get("torch_dtype"), precision),
            device=device,
            speed=speed,
        )
        self.devices = [reader.device]
        # Only its rules are used, as FARMReader sets them; its weights, two numbers, are not.
        head = QuestionAnsweringHead(
            layer_dims=[1, 2],
            no_ans_boost=no_ans_boost,
            context_window_size=context_window_size,
            n_best=top_k_per_candidate + 1,  # the no-answer is one of them
            n_best_per_sample=top_k_per_sample,
            duplicate_filtering=duplicate_filtering,
            use_confidence_scores_for_ranking=use_confidence_scores,
        )
        self.inferencer = _Inferencer(reader, head, farm_confidences)

    def run(  # type: ignore[override]
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        labels: Any = None,
        add_isolated_node_eval: bool = False,
        speed: float | None = None,
    ) -> Any:
        """As FARMReader; `speed` is that of this call."""
        with _at_speed(speed):
            return super().run(query, documents, top_k, labels, add_isolated_node_eval)

    def run_batch(  # type: ignore[override]
        self,
        queries: list[str],
        documents: list[Document] | list[list[Document]],
        top_k: int | None = None,
        batch_size: int | None = None,
        labels: Any = None,
        add_isolated_node_eval: bool = False,
        speed: float | None = None,
    ) -> Any:
        """As FARMReader; `speed` is that of this call."""
        with _at_speed(speed):
            return super().run_batch(queries, documents, top_k, batch_size, labels, add_isolated_node_eval)

    def predict(
        self, query: str, documents: list[Document], top_k: int | None = None, speed: float | None = None
    ) -> dict[str, Any]:
        """As FARMReader; documents without text are left out. `speed` is that of this call."""
        with _at_speed(speed), _competing(itertools.repeat(0)):
            return super().predict(query, documents, top_k)

    def predict_batch(
        self,
        queries: list[str],
        documents: list[Document] | list[list[Document]],
        top_k: int | None = None,
        batch_size: int | None = None,
        speed: float | None = None,
    ) -> dict[str, Any]:
        """As FARMReader; documents without text have no answers, in their place. `speed` is that of this call."""
        with _at_speed(speed), _competing(None):
            return super().predict_batch(queries, documents, top_k, batch_size)

    def _preprocess_batch_queries_and_docs(
        self, queries: list[str], documents: list[Document] | list[list[Document]]
    ) -> tuple[list[QAInput], list[int], bool]:
        """As FARMReader; the documents of a list, whose answers are ranked together, compete in what follows."""
        inputs, sizes, single = FARMReader._preprocess_batch_queries_and_docs(self, queries, documents)  # type: ignore[arg-type]
        _CONTESTS.set(itertools.chain.from_iterable(map(itertools.repeat, itertools.count(), sizes)))
        return inputs, sizes, single

    @property
    def preprocessing_batch_size(self) -> int | None:
        """Pairs of query and document that are computed at once; None: all.

        It is None at a speed above 0, where all documents of a query compete.
        """
        return None if self.inferencer.reader.at_speed(_SPEED.get()).speed else self._pairs_at_once

    @preprocessing_batch_size.setter
    def preprocessing_batch_size(self, pairs: int | None) -> None:
        self._pairs_at_once = pairs

    @property
    def max_seq_len(self) -> int:
        """Tokens of a window at most, query included."""
        return self.inferencer.reader.window_settings.max_seq_len

    @property
    def doc_stride(self) -> int:
        """Document tokens between the starts of two neighbouring windows."""
        return self.inferencer.reader.window_settings.doc_stride

    @property
    def max_query_length(self) -> int:
        """Tokens of the query that are kept."""
        return self.inferencer.reader.window_settings.max_query_length

    def update_parameters(
        self,
        context_window_size: int | None = None,
        no_ans_boost: float | None = None,
        return_no_answer: bool | None = None,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
    ) -> None:
        """Change settings of a loaded reader; None leaves one as it is. Not while other threads call it.

        Raises:
            DistilError: As the constructor; then nothing is changed.
        """
        head = self.inferencer.head
        if max_seq_len is not None or doc_stride is not None:
            window_settings = _window_settings(
                self.max_seq_len if max_seq_len is None else max_seq_len,
                self.doc_stride if doc_stride is None else doc_stride,
                self.max_query_length,
            )
            self.inferencer.reader = self.inferencer.reader.replace(window_settings=window_settings)
        if context_window_size is not None:
            head.context_window_size = context_window_size
        if no_ans_boost is not None:
            head.no_ans_boost = no_ans_boost
        if return_no_answer is not None:
            self.return_no_answers = return_no_answer

    def _extract_answers_of_predictions(
        self, predictions: list[QAPred], top_k: int | None = None
    ) -> tuple[list[Any], float]:
        # A text of which the tokenizer makes nothing is no reason to believe in "no answer", nor against it.
        found = [prediction for prediction in predictions if prediction.no_answer_gap > -math.inf]
        return FARMReader._extract_answers_of_predictions(self, found, top_k)

    # How documents become questions, and what is found in them answers: as in Haystack 1.
    predict_on_texts = FARMReader.predict_on_texts
    _add_answer_page_number = FARMReader._add_answer_page_number
    _check_no_answer = staticmethod(FARMReader._check_no_answer)

    train = _Elsewhere(_TRAINS)
    distil_prediction_layer_from = _Elsewhere(_TRAINS)
    distil_intermediate_layers_from = _Elsewhere(_TRAINS)
    eval = _Elsewhere(_MEASURES)
    eval_on_file = _Elsewhere(_MEASURES)
    calibrate_confidence_scores = _Elsewhere(
        "`haystack-distill calibrate` does it in the weights of a reader, for every framework; load what it writes"
    )
    save = _Elsewhere("the directory that it was loaded from is the whole model; copy that")
    save_to_remote = _Elsewhere("upload the directory that it was loaded from with `haystack-distill push`")
    convert_to_onnx = _Elsewhere(
        "export with `haystack-distill export --model DIRECTORY`, then load with backend='onnx'"
    )


def _window_settings(max_seq_len: int, doc_stride: int, max_query_length: int) -> WindowSettings:
    windows = WindowSettings(max_seq_len, doc_stride, max_query_length)
    if doc_stride >= max_seq_len - max_query_length:  # FARMReader's condition
        raise DistilError(
            f"with doc_stride {doc_stride}, max_seq_len {max_seq_len} and max_query_length {max_query_length} there is "
            f"text between windows that none of them holds; doc_stride must be below {max_seq_len - max_query_length}"
        )
    return windows


def _precision(dtype: Any, precision: str) -> str:
    """The precision that `model_kwargs` or the argument asks for."""
    if dtype is None:
        return precision
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    asked = names.get(str(dtype).removeprefix("torch."))
    if asked is None:
        raise DistilError(f"torch_dtype in model_kwargs must be torch.float32, float16 or bfloat16, not {dtype!r}")
    if precision not in ("fp32", asked):
        raise DistilError(
            f"torch_dtype {dtype} in model_kwargs and precision {precision!r} contradict; give one of them"
        )
    return asked


def _fetched(name: str, *, proxies: dict | None, local_files_only: bool, force_download: bool, **hub: Any) -> str:
    """The directory of a model of the hub where a download was asked for in a special way; else the name as it is."""
    if Path(name).is_dir() or not (proxies or local_files_only or force_download):
        return name
    try:
        return huggingface_hub.snapshot_download(
            name,
            proxies=proxies,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=_MODEL_FILES,
            **hub,
        )
    except (OSError, ValueError) as error:
        where = "in the hub's local cache" if local_files_only else "on the hub"
        raise DistilError(f"cannot find {name!r} {where}: {error}") from error


# The speed of the call that this thread is in; None for the reader's own.
_SPEED: ContextVar[float | None] = ContextVar("speed", default=None)
# For each document that will be read in this call, in order, the number of the contest that it is in: those of a query
# compete for its answer. None: each is read by itself.
_CONTESTS: ContextVar[Iterator[int] | None] = ContextVar("contests", default=None)


@contextlib.contextmanager
def _at_speed(speed: float | None) -> Iterator[None]:
    """The context of a call with a speed of its own; None leaves that of the call around it, or the reader's."""
    token = None if speed is None else _SPEED.set(speed)
    try:
        yield
    finally:
        if token is not None:
            _SPEED.reset(token)


@contextlib.contextmanager
def _competing(contests: Iterator[int] | None) -> Iterator[None]:
    """The context of a call with contests of its own, see `_CONTESTS`."""
    token = _CONTESTS.set(contests)
    try:
        yield
    finally:
        _CONTESTS.reset(token)


class _Inferencer:
    """What FARMReader asks: predictions for questions about documents."""

    def __init__(self, reader: Reader, head: QuestionAnsweringHead, farm_confidences: bool) -> None:
        self.reader = reader
        self.head = head
        self.farm_confidences = farm_confidences
        self.model = SimpleNamespace(prediction_heads=[head])  # where users of FARMReader look for its settings

    @property
    def batch_size(self) -> int:
        """Windows of full length in a batch; `predict_batch` sets it."""
        return self.reader.batch_size

    @batch_size.setter
    def batch_size(self, windows: int) -> None:
        self.reader = self.reader.replace(batch_size=windows)

    def inference_from_objects(self, objects: Sequence[QAInput], **_: Any) -> list[QAPred]:
        """A prediction for each document, in order."""
        pairs = [(one.questions[0].text, one.doc_text) for one in objects]
        if not all(question.strip() for question, _ in pairs):
            raise DistilError("the query is empty; give a question")
        contests = _CONTESTS.get()
        compete = None if contests is None else list(itertools.islice(contests, len(pairs)))
        windows = self.reader.cut_pairs(pairs, compete)
        of_window: dict[int, list[QACandidate]] = {}
        for batch, starts, ends in self._logits(windows):
            for window, candidates in zip(batch["window"].tolist(), self._candidates(batch, starts, ends), strict=True):
                of_window[window] = candidates
        predictions = []
        rows = windows.__getitems__(range(len(windows)))
        heads, first_characters = rows.ints("context_start").tolist(), rows.lists("char_starts")
        for number, (one, (question, text)) in enumerate(zip(objects, pairs, strict=True)):
            own = windows.windows_of_examples(number, number + 1)
            candidates = [of_window[window] for window in own]
            places = list(zip(heads[own.start : own.stop], first_characters[own.start : own.stop], strict=True))
            offsets = _to_document(windows, places, candidates)
            with_spans = [some for some in candidates if len(some) > 1]
            if with_spans:
                best, gap = self.head.reduce_preds(with_spans)
            else:  # text of which the tokenizer makes nothing
                best, gap = candidates[0], -math.inf
            predictions.append(
                QAPred(
                    id=one.questions[0].uid,
                    prediction=best,
                    context=text,
                    question=question,
                    token_offsets=offsets,
                    context_window_size=self.head.context_window_size,
                    aggregation_level="document",
                    no_answer_gap=gap,
                )
            )
        return predictions

    def _logits(self, windows: AnyWindows) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
        """As `Reader.logits`; FARMReader's batches where its confidences are wanted."""
        reader = self.reader.at_speed(_SPEED.get())
        if not self.farm_confidences:
            yield from reader.answer_logits(windows, range(len(windows)))
            return
        if reader.exported is None and (reader.model.training or reader.model.base_model.training):
            reader.model.eval()
        for first in range(0, len(windows), self.batch_size):
            batch = windows.collate(windows.__getitems__(range(first, min(first + self.batch_size, len(windows)))))
            for name, filler in (("input_ids", windows.pad_token_id), ("context_mask", False)):
                batch[name] = self._padded(batch[name], filler)
            for name in batch.keys() & {"attention_mask", "token_type_ids"}:
                batch[name] = self._padded(batch[name], 0)
            starts, ends = reader.forward(model_inputs(batch))
            yield batch, *reader.as_answered(windows, starts, ends)

    def _padded(self, rows: torch.Tensor, filler: int) -> torch.Tensor:
        return torch.nn.functional.pad(rows, (0, self.reader.window_settings.max_seq_len - rows.shape[1]), value=filler)

    def _candidates(
        self, batch: dict[str, torch.Tensor], starts: torch.Tensor, ends: torch.Tensor
    ) -> Iterator[list[QACandidate]]:
        """Of each window of a batch the best spans and, last, the no-answer; positions are the window's."""
        kept = torch.ones_like(batch["attention_mask"]) if self.farm_confidences else batch["attention_mask"]
        padding = kept == 0
        start_chances = _softmax(starts.masked_fill(padding, -torch.inf))
        end_chances = _softmax(ends.masked_fill(padding, -torch.inf))
        spans = window_spans(
            starts,
            ends,
            batch["context_mask"],
            _NO_ANSWER,
            functools.partial(separate_spans, top_k=self.head.n_best_per_sample, apart=self.head.duplicate_filtering),
        )
        confidence = (start_chances.gather(1, spans.first) + end_chances.gather(1, spans.last)) / 2
        no_answers = zip(
            self._numbers(spans.no_answer), self._numbers((start_chances + end_chances)[:, _NO_ANSWER] / 2), strict=True
        )
        for found, no_answer in zip(spans.rows(confidence, self._numbers), no_answers, strict=True):
            yield [*(_candidate("span", *span) for span in found), _candidate("no_answer", *no_answer, 0, 0)]

    def _numbers(self, table: torch.Tensor) -> Any:
        """Rows of numbers: FARMReader computes with them in fp32, where double precision would round otherwise."""
        return table.numpy() if self.farm_confidences else table.tolist()


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Chances over the tokens of each window, (B, L), window by window: over a table it wakes PyTorch's threads."""
    return torch.stack([window.softmax(0) for window in logits])


def _candidate(kind: str, score: float, confidence: float, start: int, end: int) -> QACandidate:
    return QACandidate(
        answer_type=kind,
        score=score,
        offset_answer_start=start,
        offset_answer_end=end,
        offset_unit="token",
        aggregation_level="passage",
        confidence=confidence,
    )


def _to_document(
    windows: AnyWindows, places: list[tuple[int, np.ndarray]], candidates: list[list[QACandidate]]
) -> list[int]:
    """Move candidates from positions in their windows to tokens of the document, whose first characters are returned.

    The no-answer becomes (-1, -1), as FARM has it.

    Args:
        windows: The windows.
        places: Of each window of the document, where its context begins and the first characters of its tokens.
        candidates: Those of each window.
    """
    offsets: list[int] = []
    settings, n_suffix = windows.settings, len(windows.template.suffix)
    for number, (head, starts) in enumerate(places):
        first = number * min(settings.doc_stride, settings.max_seq_len - head - n_suffix)
        offsets[first:] = starts.tolist()
        for candidate in candidates[number]:
            if candidate.answer_type == "no_answer":
                candidate.to_doc_level(-1, -1)
            else:
                move = first - head
                candidate.to_doc_level(candidate.offset_answer_start + move, candidate.offset_answer_end + move)
    return offsets
