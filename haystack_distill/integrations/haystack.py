"""Haystack 2 and 3: a reader component for distilled readers, and Haystack's readers as teachers.

Needs `pip install "haystack-distill[haystack]"`. Haystack 1 (farm-haystack) has the same import name `haystack`; for it
there is `haystack_distill.integrations.farm`.
"""

import copy
import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from haystack_distill.data.squad.validation import replace_lone_surrogates
from haystack_distill.data.text_tokenizer import PairTemplate, text_tokenizer
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.data.windows import AnyWindows
from haystack_distill.errors import DistilError
from haystack_distill.models.backends.exported import check_backend
from haystack_distill.models.reader import Reader
from haystack_distill.models.span_decoding import Span, SpanDecoder, joint_log_partition
from haystack_distill.utils.checks import check_argument, is_integer, is_number
from haystack_distill.utils.transformers_compat import in_fp32

try:
    from haystack import Document, ExtractedAnswer, component, default_from_dict, default_to_dict
    from haystack.utils import ComponentDevice, Secret
except ImportError as error:
    raise ImportError(
        "haystack_distill.integrations.haystack needs Haystack 2 or 3 (haystack-ai), which is not in this environment: "
        'pip install "haystack-distill[haystack]". Haystack 1 (farm-haystack) has the same import name, so the two '
        "need an environment each; for Haystack 1 use haystack_distill.integrations.farm"
    ) from error

__all__ = ["DistilledReader", "reader_from_haystack"]

logger = logging.getLogger(__name__)

_ANSWERS_PER_SEQUENCE = 20  # the default of TransformersExtractiveReader
_PLACED_BY_ACCELERATE = ("auto", "balanced", "balanced_low_0", "sequential")  # on one device, for one model that fits
_DONE_ANYWAY = [("trust_remote_code", False), ("use_safetensors", True)]  # of model_kwargs
# One lock for all components: a lock of its own would keep a component from being copied.
_LOADING = threading.Lock()


@component
class DistilledReader:
    """Finds answers to a query in documents with a distilled reader, or any other question answering model.

    Inputs, outputs and parameters are those of `TransformersExtractiveReader` (transformers-haystack), and so is what
    they mean, but for these differences (docs/serving.md has them in a table):

    - Models with segments (such as BERT) get their `token_type_ids`.
    - The windows of all documents are sorted by length before they are batched, so little is spent on padding. With
      `max_batch_size=None` a batch holds 16 windows of `max_seq_length` tokens, or more that are shorter, instead of
      everything at once.
    - The query is never cut to make room; its tokens beyond `max_query_length` are left out, with a warning.
    - An answer has at most `max_answer_length` tokens.
    - Scores are the model's own probabilities, so `calibration_factor` is taken and ignored, with a warning; what makes
      them agree with how often answers are right is `haystack-distill calibrate`, once, in the reader itself.
    - A document with no text but white space is left out with a warning, like one without content. If that leaves
      none, there are no answers, just as for an empty list or an empty query.
    - A document that is passed twice (same id, same content) counts once.
    - A parameter given to `run` always counts, also where it is 0, which most may not be.
    - `model` has no default. Of `model_kwargs`, `revision` and a `device_map` of one device are used; the rest is
      ignored with a warning: weights are read from safetensors, in fp32, onto one device, and no code that comes with a
      model is ever run. `precision` is the number format to compute in.

    **Scores.** All windows of all documents share one softmax, as in Clark and Gardner 2018
    (https://arxiv.org/abs/1710.10723): a document is to the query what a window is to a document, and answers are
    ranked by their logits, as in the original. The no-answer stands in it once, with the logit of the window that
    believes in it least. So the scores of all answers and the no-answer add up to at most 1, depend on what else is in
    `documents`, and for one document that fits into a window are those of `Reader.answer`.

    **The no-answer** is an `ExtractedAnswer` with `data=None` and stands where its score puts it, as in the original.
    There its score is the product of what the other answers' scores lack to 1, and it is nearly always last; here it is
    what the model believes, so **`answers[0].data` is None where the model thinks that no document holds an answer**.
    A threshold that `haystack-distill calibrate` stored in the reader counts there. `no_answer=False` leaves it out.

    Raises:
        DistilError: A parameter is out of its range; on `warm_up` or the first `run`, the model cannot be loaded.

    Example:
        >>> from haystack import Document
        >>> reader = DistilledReader("my-student")  # doctest: +SKIP
        >>> documents = [Document(content="Ada Lovelace wrote it in 1843.")]
        >>> reader.run(query="Who wrote it?", documents=documents)["answers"][0].data  # doctest: +SKIP
        'Ada Lovelace'

    A pipeline with this component is loaded with `Pipeline.loads(yaml, allowed_modules=["haystack_distill"])`, or in a
    process whose environment has `HAYSTACK_DESERIALIZATION_ALLOWLIST=haystack_distill`: Haystack imports components of
    other packages only if they are on its list of trusted modules.
    """

    def __init__(
        self,
        model: Path | str,
        device: ComponentDevice | str | None = None,
        token: Secret | str | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        top_k: int = 20,
        score_threshold: float | None = None,
        max_seq_length: int = 384,
        stride: int = 128,
        max_batch_size: int | None = None,
        answers_per_seq: int | None = None,
        no_answer: bool = True,
        calibration_factor: float | None = None,
        overlap_threshold: float | None = 0.01,
        model_kwargs: dict[str, Any] | None = None,
        *,
        max_query_length: int = 64,
        max_answer_length: int = 30,
        precision: str = "auto",
        revision: str | None = None,
        backend: str = "torch",
        num_threads: int | None = None,
        speed: float = 0.0,
        passages: int | None = None,
    ) -> None:
        """Keep the settings; nothing is loaded before `warm_up` or the first `run`.

        Args:
            model: A directory (what `Reader.save` wrote) or a model name on the Hugging Face hub.
            device: Where to compute, a single device: a `ComponentDevice`, or a name such as "cpu" or "cuda:0"; None
                (or "auto") is Haystack's default device.
            token: For private models on the hub; resolved only when the model is loaded. A string is taken as
                `Secret.from_token` takes it: the component works, but cannot be serialised.
            top_k: Answers at most, the no-answer not counted.
            score_threshold: Return only answers, the no-answer included, with at least this score.
            max_seq_length: Tokens in a window, query and special tokens included; longer documents are cut.
            stride: Tokens that two neighbouring windows of a document share.
            max_batch_size: Windows that go through the model at the same time, at most; at a speed, as many tokens.
            answers_per_seq: Candidates that each window contributes at most; None is 20.
            no_answer: Whether to add an answer with `data=None`, scored by the model's belief that no document holds
                one. It is the first where it has the highest score.
            calibration_factor: TransformersExtractiveReader's, ignored with a warning; `haystack-distill calibrate`
                calibrates the reader itself.
            overlap_threshold: Leave out an answer that shares more than this part of its characters, or of the other's,
                with a better one of the same document; None keeps all.
            model_kwargs: TransformersExtractiveReader's: `revision` and a `device_map` of one device (which counts more
                than `device`, as there) are used, the rest is ignored with a warning.
            max_query_length: Tokens of the query that are kept.
            max_answer_length: Tokens of the longest answer.
            precision: "auto", "fp32", "bf16" or "fp16"; see `utils.devices.resolve_precision`.
            revision: Branch, tag or commit of a model on the hub.
            backend: "torch"; or "onnx", "onnx-int8", "openvino" and "openvino-int8", faster on the processor, for a
                reader that was exported (`haystack-distill export`). Those run on the processor; `device` is for
                "torch", `precision` for "torch" and OpenVINO. "auto" is the fastest of these here (see `Reader.load`).
            num_threads: Processor threads that a forward pass may use; with "torch" a setting of the whole process.
            speed: For a reader with early exits, from 0 (all layers run) to 1; see `Reader`.
            passages: For backend "auto": documents that a query is asked of, as a rule; 10 by default.
        """
        self.device, self.revision, ignored = _of_model_kwargs(model_kwargs, _component_device(device), revision)
        self.model_name_or_path = str(model)
        self.token = (Secret.from_token(token) if token else None) if isinstance(token, str) else token
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.max_seq_length = max_seq_length
        self.stride = stride
        self.max_batch_size = max_batch_size
        self.answers_per_seq = answers_per_seq
        self.no_answer = no_answer
        self.overlap_threshold = overlap_threshold
        self.max_query_length = max_query_length
        self.max_answer_length = max_answer_length
        self.precision = precision
        self.backend = backend
        self.num_threads = num_threads
        self.speed = speed
        self.passages = passages
        check_backend(backend)
        self.reader: Reader | None = None
        _check_at_least(1, max_query_length=max_query_length, max_answer_length=max_answer_length)
        _check_run_parameters(
            top_k=top_k,
            max_seq_length=max_seq_length,
            stride=stride,
            max_batch_size=max_batch_size,
            answers_per_seq=answers_per_seq,
            overlap_threshold=overlap_threshold,
            score_threshold=score_threshold,
        )
        if self.device is not None and self.device.has_multiple_devices:
            raise DistilError("a distilled reader runs on one device; give device=ComponentDevice.from_str(...)")
        elsewhere = self.device is not None and self.device.to_torch().type != "cpu"
        formats = ("auto", "fp32", "bf16") if backend.startswith("openvino") else ("auto", "fp32")
        if backend not in ("torch", "auto") and (elsewhere or precision not in formats):
            raise DistilError(
                f"backend {backend!r} runs on the processor, in {' or '.join(formats[1:])}; leave device and precision "
                "out, or use backend='torch'"
            )
        if calibration_factor is not None:
            ignored.insert(0, "calibration_factor")
        if ignored:
            logger.warning("DistilledReader ignores %s.", ", ".join(ignored))
        if calibration_factor is not None and score_threshold is not None:
            logger.warning(
                "score_threshold=%s now applies to the model's own probabilities, calibrated or not; choose it anew.",
                score_threshold,
            )

    def to_dict(self) -> dict[str, Any]:
        """The component as a dictionary; a token is named by its environment variable, never written out.

        Raises:
            ValueError: The token was given as such, not as `Secret.from_env_var`.
        """
        return default_to_dict(
            self,
            model=self.model_name_or_path,
            device=self.device.to_dict() if self.device else None,
            token=self.token.to_dict() if self.token else None,
            top_k=self.top_k,
            score_threshold=self.score_threshold,
            max_seq_length=self.max_seq_length,
            stride=self.stride,
            max_batch_size=self.max_batch_size,
            answers_per_seq=self.answers_per_seq,
            no_answer=self.no_answer,
            overlap_threshold=self.overlap_threshold,
            max_query_length=self.max_query_length,
            max_answer_length=self.max_answer_length,
            precision=self.precision,
            revision=self.revision,
            backend=self.backend,
            num_threads=self.num_threads,
            speed=self.speed,
            passages=self.passages,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "DistilledReader":
        """The component that `to_dict` wrote."""
        parameters = dict(data.get("init_parameters", {}))
        for name, kind in (("device", ComponentDevice), ("token", Secret)):
            if isinstance(parameters.get(name), dict):
                parameters[name] = kind.from_dict(parameters[name])
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def warm_up(self) -> None:
        """Load the model, unless that is done already. `run` does it too.

        Raises:
            DistilError: Nothing there, or not a question answering model with a fast tokenizer.
        """
        if self.reader is None:
            with _LOADING:
                self.reader = self.reader or self._load()

    def _load(self) -> Reader:
        where: dict[str, Any] = {}
        if self.backend in ("torch", "auto"):
            where = {"device": ComponentDevice.resolve_device(self.device).to_torch()}
        return Reader.load(
            self.model_name_or_path,
            token=self.token.resolve_value() if self.token else None,
            revision=self.revision,
            window_settings=_window_settings(self.max_seq_length, self.max_query_length),
            max_answer_length=self.max_answer_length,
            backend=self.backend,
            num_threads=self.num_threads,
            passages=self.passages,
            precision=self.precision,
            speed=self.speed,
            **where,
        )

    @component.output_types(answers=list[ExtractedAnswer])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        max_seq_length: int | None = None,
        stride: int | None = None,
        max_batch_size: int | None = None,
        answers_per_seq: int | None = None,
        no_answer: bool | None = None,
        overlap_threshold: float | None = None,
        speed: float | None = None,
    ) -> dict[str, Any]:
        """Find answers to a query in documents. Several threads may call this at once.

        Args:
            query: The question to answer from the documents. An empty one has no answers.
            documents: The documents in which to look for answers; they may have any length.
            top_k: How many answers to return at most, at least 1; the no-answer comes on top. Default: the
                component's setting, as for all that follow.
            score_threshold: Return only answers whose score, from 0 to 1, is at least this.
            max_seq_length: How many tokens the model reads at a time, question included; longer documents are cut
                into windows of this length.
            stride: How many tokens two neighbouring windows of a long document share.
            max_batch_size: How many windows go through the model at the same time at most.
            answers_per_seq: How many candidates each window contributes at most.
            no_answer: Whether to add an answer without text, scored by the belief that no document holds an answer.
            overlap_threshold: Leave out an answer that shares more than this part (0 to 1) of its characters, or of
                the other's, with a better answer from the same document; 1 keeps all.
            speed: How early a reader with early exits may answer: from 0, all layers run, to 1, only the first.

        Returns:
            `{"answers": [...]}`, best first; empty where the query is empty or no document has content. An answer has
            `query`, `data`, `score` (0 to 1), `document`, `document_offset` (characters of the content) and, where the
            document's meta has a `page_number`, `meta["answer_page_number"]`. The no-answer, first where it has the
            highest score, has `query` and `score` only: its `data` is None.

        Raises:
            DistilError: A parameter is out of its range, or the query leaves no room for the documents.
        """
        self.warm_up()
        if not documents:
            return {"answers": []}
        top_k = _first(top_k, self.top_k)
        score_threshold = _first(score_threshold, self.score_threshold)
        max_batch_size = _first(max_batch_size, self.max_batch_size)
        answers_per_seq = _first(answers_per_seq, self.answers_per_seq, _ANSWERS_PER_SEQUENCE)
        overlap_threshold = _first(overlap_threshold, self.overlap_threshold)
        max_seq_length = _first(max_seq_length, self.max_seq_length)
        stride = _first(stride, self.stride)
        _check_run_parameters(
            top_k=top_k,
            max_seq_length=max_seq_length,
            stride=stride,
            max_batch_size=max_batch_size,
            answers_per_seq=answers_per_seq,
            overlap_threshold=overlap_threshold,
            score_threshold=score_threshold,
        )
        documents = [document for document in _distinct(documents) if _has_text(document)]
        if not documents or not query.strip():
            return {"answers": []}

        query = replace_lone_surrogates(query)  # tokenizers refuse half a surrogate pair
        reader = self._reader_for(query, max_seq_length, stride).at_speed(speed)
        found = _read(
            reader, query, [document.content or "" for document in documents], answers_per_seq, max_batch_size
        )
        kept: list[Span] = []
        for span in found.spans:
            if len(kept) == top_k:
                break
            if overlap_threshold is None or not any(
                other.example == span.example and _overlap(other, span) > overlap_threshold for other in kept
            ):
                kept.append(span)
        answers = [_answer(query, documents[span.example], span, found.score(span.logit)) for span in kept]
        if _first(no_answer, self.no_answer):
            answers.append(ExtractedAnswer(query=query, score=found.score(found.no_answer)))
            answers.sort(key=lambda answer: -answer.score)
        if score_threshold is not None:
            answers = [answer for answer in answers if answer.score >= score_threshold]
        return {"answers": answers}

    def _reader_for(self, query: str, max_seq_length: int, stride: int) -> Reader:
        """A reader of its own for one run, with the loaded weights and windows that overlap by `stride` tokens."""
        assert self.reader is not None
        n_query = len(text_tokenizer(self.reader.tokenizer).encode(query.strip(), add_special_tokens=False).ids)
        if n_query > self.max_query_length:
            logger.warning(
                "The query has %d tokens; only the first %d are used (max_query_length).",
                n_query,
                self.max_query_length,
            )
            n_query = self.max_query_length
        room = max_seq_length - n_query - PairTemplate.of(self.reader.tokenizer).n_special
        if room <= stride:
            raise DistilError(
                f"a query of {n_query} tokens leaves {max(room, 0)} tokens for a document in max_seq_length "
                f"{max_seq_length}, and windows are to share {stride}; raise max_seq_length or lower stride"
            )
        settings = WindowSettings(max_seq_length, doc_stride=room - stride, max_query_length=max(1, n_query))
        return self.reader.replace(window_settings=settings)


def reader_from_haystack(reader: Any, **settings: Any) -> Reader:
    """Haystack's reader as a `Reader`, for instance as a teacher for `ReaderTrainer`.

    The weights are shared, not copied, if they are fp32: take `.copy()` of the result before training it as a student.

    Args:
        reader: A warmed-up TransformersExtractiveReader (ExtractiveReader in Haystack 2) or DistilledReader.
        settings: `Reader`'s own. By default the device is the component's, and so is the windows' length; how far apart
            windows start is `WindowSettings`' default, for Haystack's `stride` is an overlap.

    Raises:
        DistilError: The component holds no model, or one that is quantised or spread over several devices.
    """
    if isinstance(reader, DistilledReader):
        if reader.reader is None:
            raise DistilError("the DistilledReader has not loaded its model; call its warm_up() first")
        reader.reader.require_weights()
        return reader.reader.replace(**{"precision": reader.precision} | settings)
    model, tokenizer = getattr(reader, "model", None), getattr(reader, "tokenizer", None)
    if not isinstance(model, torch.nn.Module) or tokenizer is None:
        raise DistilError(
            f"{type(reader).__name__} holds no model and tokenizer; give a TransformersExtractiveReader or a "
            "DistilledReader, and call its warm_up() first"
        )
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1 or getattr(model, "is_quantized", False):
        raise DistilError(
            "the component's model is quantised or spread over several devices; make the component without such "
            "model_kwargs, or use Reader.load with the model's name"
        )
    own: dict[str, Any] = {
        "window_settings": _window_settings(reader.max_seq_length, WindowSettings().max_query_length),
        "device": model.device,
    }
    if model.dtype != torch.float32:
        # transformers 5 keeps the number format of the files; the component keeps its own weights as they are.
        model = in_fp32(copy.deepcopy(model))
    return Reader(model, tokenizer, **own | settings)


@dataclass(frozen=True)
class _Found:
    """What a reader finds in some documents: spans, best first, and what turns a logit into a score."""

    spans: list[Span]
    no_answer: float
    log_mass: float

    def score(self, logit: float) -> float:
        return math.exp(min(0.0, logit - self.log_mass))


def _read(reader: Reader, query: str, texts: list[str], per_window: int, max_batch_size: int | None) -> _Found:
    """Run the reader over all texts and put the spans of all windows into one softmax."""
    if max_batch_size is not None:
        reader = reader.replace(batch_size=max_batch_size)  # its batches are bounded by the tokens of as many windows
    if reader.speed:
        max_batch_size = None  # all windows of a query compete for its answer, so they go together
    windows = reader.cut_pairs([(query, text) for text in texts], [0] * len(texts))
    documents = range(len(texts))
    position = windows.template.no_answer_position
    decoder = SpanDecoder(windows, documents, per_window, reader.max_answer_length)
    log_masses: list[torch.Tensor] = []
    for selection in _selections(windows, max_batch_size):
        for batch, starts, ends in reader.answer_logits(windows, selection):
            log_masses.append(joint_log_partition(starts.double(), ends.double(), batch["context_mask"], position))
            decoder.add(batch, starts, ends)
    with_text = [document for document in documents if decoder.has_text(document)] or documents
    no_answer = min(decoder.no_answer(document).logit for document in with_text)
    masses = torch.cat([*log_masses, torch.tensor([no_answer], dtype=torch.float64)])
    return _Found(decoder.all_spans(), no_answer, float(masses.logsumexp(0)))


def _selections(windows: AnyWindows, max_batch_size: int | None) -> Iterator[list[int]]:
    """Windows to hand to `Reader.logits` together: all, or at most so many, those of about equal length together."""
    longest_first = np.argsort(-windows.lengths, kind="stable").tolist()
    size = max_batch_size or len(longest_first)
    for first in range(0, len(longest_first), size):
        yield longest_first[first : first + size]


def _window_settings(max_seq_length: int, max_query_length: int) -> WindowSettings:
    return WindowSettings(max_seq_length, max_query_length=max(1, min(max_query_length, max_seq_length // 2)))


def _component_device(device: Any) -> ComponentDevice | None:
    """A device that was given as itself, by its name or as PyTorch's.

    Raises:
        DistilError: No such device.
    """
    if device is None or device == "auto" or isinstance(device, ComponentDevice):
        return None if device == "auto" else device
    try:
        return ComponentDevice.from_str(f"cuda:{device}" if isinstance(device, int) else str(device))
    except ValueError as error:
        raise DistilError(
            f"device must be a ComponentDevice or a name such as 'cpu' or 'cuda:0', not {device!r} ({error})"
        ) from error


def _of_model_kwargs(
    model_kwargs: dict[str, Any] | None, device: ComponentDevice | None, revision: str | None
) -> tuple[ComponentDevice | None, str | None, list[str]]:
    """Device and revision, changed by TransformersExtractiveReader's `model_kwargs`, and what of these is ignored."""
    ignored = []
    for name, value in (model_kwargs or {}).items():
        if name == "device_map" and not isinstance(value, dict):
            value = {"": value}
        if value is None or (name, value) in _DONE_ANYWAY:
            continue
        if name == "device_map":
            places = list(value.values())
            if any(place != places[0] for place in places):
                ignored.append("model_kwargs['device_map'] of several devices (one is used)")
            elif places and places[0] not in (None, *_PLACED_BY_ACCELERATE):
                mapped = _component_device(places[0])
                if device not in (None, mapped):
                    ignored.append("device (model_kwargs['device_map'] counts)")
                device = mapped
        elif name == "revision" and revision in (None, value):
            revision = value
        else:
            hint = " (there is precision=...)" if name in ("dtype", "torch_dtype") else ""
            ignored.append(f"model_kwargs[{name!r}]{hint}")
    return device, revision, ignored


def _distinct(documents: list[Document]) -> list[Document]:
    """The documents, each once: two retrievers may find the same one."""
    seen: dict[tuple[str, str | None], Document] = {}
    for document in documents:
        seen.setdefault((document.id, document.content), document)
    return list(seen.values())


def _has_text(document: Document) -> bool:
    if document.content and document.content.strip():
        return True
    logger.warning(
        "Document with id %s was passed to DistilledReader. The Document doesn't contain any text and will be ignored.",
        document.id,
    )
    return False


def _overlap(one: Span, other: Span) -> float:
    """Characters that two spans share, as a part of the shorter one."""
    shared = min(one.end, other.end) - max(one.start, other.start)
    return max(0, shared) / min(one.end - one.start, other.end - other.start)


def _answer(query: str, document: Document, span: Span, score: float) -> ExtractedAnswer:
    return ExtractedAnswer(
        query=query,
        score=score,
        data=(document.content or "")[span.start : span.end],
        document=document,
        document_offset=ExtractedAnswer.Span(span.start, span.end),
        meta=_page_number(document, span.start),
    )


def _page_number(document: Document, start: int) -> dict[str, Any]:
    """The answer's meta: its page, counted from the document's by form feeds."""
    if "page_number" not in document.meta:
        return {}
    page = document.meta["page_number"]
    if not isinstance(page, int):
        logger.warning(
            "Document's page_number must be int but is %s. No page number will be added to the answer.", type(page)
        )
        return {}
    return {"answer_page_number": page + (document.content or "")[:start].count("\f")}


def _first(*values: Any) -> Any:
    """The first that is not None, or None."""
    return next((value for value in values if value is not None), None)


def _check_run_parameters(
    *, stride: int, overlap_threshold: float | None, score_threshold: float | None, **counts: int | None
) -> None:
    _check_at_least(1, **counts)
    check_argument("stride", stride, is_integer(stride, 0), "at least 0 and whole")
    valid = overlap_threshold is None or (is_number(overlap_threshold) and overlap_threshold >= 0)
    check_argument("overlap_threshold", overlap_threshold, valid, "at least 0, or None to keep all answers")
    valid = score_threshold is None or (is_number(score_threshold) and 0 <= score_threshold <= 1)
    check_argument("score_threshold", score_threshold, valid, "from 0 to 1, or None to keep all answers")


def _check_at_least(least: int, **counts: int | None) -> None:
    for name, value in counts.items():
        check_argument(name, value, value is None or is_integer(value, least), f"at least {least} and whole")
