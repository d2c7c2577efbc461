"""Haystack 1 (farm-haystack 1.26): a fast reader node for distilled readers.

`DistilledReader` stands where a FARMReader stands in a pipeline and returns the same answers, scored as it scores. What
is slow about a FARMReader is replaced (every window padded to `max_seq_len`, a whole table of start and end logits for
each window, a Python object for each step); how answers are chosen and put together is FARMReader's own code.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

try:
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

from haystack_distill.errors import DistilError
from haystack_distill.features import AnyWindows, WindowSettings
from haystack_distill.reader import Reader
from haystack_distill.spans import separate_spans

__all__ = ["DistilledReader"]


class DistilledReader(BaseReader):
    """Finds answers to a query in documents, as FARMReader does and scored as it scores, only faster.

    One difference: a confidence leaves padding out of its softmax, where FARMReader counts it in, so the two differ a
    little (a few hundredths) for documents much shorter than `max_seq_len`.

    Arguments are FARMReader's and mean the same, but those about processes, progress bars, downloads and several
    devices, which it does not take. New are `backend`, `num_threads` (see `Reader.load`) and `precision`; calibrated
    confidence scores and training are FARMReader's and `DistilFARMReader`'s. In pipelines (YAML): `type:
    DistilledReader`. Several threads may call it at once.

    Args:
        model_name_or_path: A reader directory (what `Reader.save` wrote, or a Hugging Face one) or a name on the hub.
        backend: "torch", or "onnx" and "onnx-int8" for a reader that was exported.
        num_threads: Processor threads that a forward pass may use.
        model_version: Branch, tag or commit of a model on the hub.
        context_window_size: Characters around an answer that are returned with it.
        batch_size: Windows of `max_seq_len` tokens in a batch, or more that are shorter.
        use_gpu: Whether to use a GPU if there is one ("torch" only).
        no_ans_boost: Added to the no-answer's logit.
        return_no_answer: Whether to return a no-answer among the answers.
        top_k: Answers at most.
        top_k_per_candidate: Answers from one document at most.
        top_k_per_sample: Answers from one window at most.
        max_seq_len: Tokens of a window at most, query included.
        doc_stride: Document tokens between the starts of two neighbouring windows.
        duplicate_filtering: Of the answers of a window, none starts or ends within so many tokens of a better one's
            start or end; -1 keeps all.
        use_confidence_scores: Whether scores are confidences (0 to 1), by which answers then are ranked, or logits.
        confidence_threshold: Leave out answers with less confidence.
        use_auth_token: What opens a private model on the hub.
        max_query_length: Tokens of the query that are kept.
        precision: "fp32", as FARMReader computes, "auto", "bf16" or "fp16"; see `devices.resolve_precision`.

    Raises:
        DistilError: Nothing there, or not a question answering model, or it was not exported.

    Example:
        >>> reader = DistilledReader("my-student", backend="onnx-int8")  # doctest: +SKIP
        >>> pipeline = ExtractiveQAPipeline(reader, retriever)  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name_or_path: str,
        backend: str = "torch",
        num_threads: int | None = None,
        model_version: str | None = None,
        context_window_size: int = 150,
        batch_size: int = 50,
        use_gpu: bool = True,
        no_ans_boost: float = 0.0,
        return_no_answer: bool = False,
        top_k: int = 10,
        top_k_per_candidate: int = 3,
        top_k_per_sample: int = 1,
        max_seq_len: int = 256,
        doc_stride: int = 128,
        duplicate_filtering: int = 0,
        use_confidence_scores: bool = True,
        confidence_threshold: float | None = None,
        use_auth_token: str | None = None,
        max_query_length: int = 64,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.return_no_answers = return_no_answer
        self.top_k = top_k
        self.top_k_per_candidate = top_k_per_candidate
        self.use_confidence_scores = use_confidence_scores
        self.confidence_threshold = confidence_threshold
        self.preprocessing_batch_size = None  # all documents at once; `_Inferencer` makes batches
        device = "auto" if use_gpu and backend == "torch" else "cpu"
        reader = Reader.load(
            model_name_or_path,
            backend=backend,
            num_threads=num_threads,
            token=use_auth_token,
            revision=model_version,
            windows=WindowSettings(max_seq_len, doc_stride, max_query_length),
            batch_size=batch_size,
            precision=precision,
            device=device,
        )
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
        self.inferencer = _Inferencer(reader, head)

    # How documents become questions, and what is found in them answers: as in Haystack 1.
    predict = FARMReader.predict
    predict_batch = FARMReader.predict_batch
    _extract_answers_of_predictions = FARMReader._extract_answers_of_predictions
    _preprocess_batch_queries_and_docs = FARMReader._preprocess_batch_queries_and_docs
    _deduplicate_predictions = FARMReader._deduplicate_predictions
    _identify_overlapping_docs = staticmethod(FARMReader._identify_overlapping_docs)
    _qa_cand_in_overlap = staticmethod(FARMReader._qa_cand_in_overlap)
    _is_duplicate_answer = staticmethod(FARMReader._is_duplicate_answer)
    _add_answer_page_number = FARMReader._add_answer_page_number
    _check_no_answer = staticmethod(FARMReader._check_no_answer)


class _Inferencer:
    """What FARMReader asks: predictions for questions about documents."""

    def __init__(self, reader: Reader, head: QuestionAnsweringHead) -> None:
        self.reader = reader
        self.head = head

    @property
    def batch_size(self) -> int:
        """Windows of full length in a batch; `predict_batch` sets it."""
        return self.reader.batch_size

    @batch_size.setter
    def batch_size(self, windows: int) -> None:
        self.reader.batch_size = windows

    def inference_from_objects(self, objects: Sequence[QAInput], **_: Any) -> list[QAPred]:
        """A prediction for each document, in order."""
        pairs = [(one.questions[0].text, one.doc_text) for one in objects]
        if not all(question.strip() for question, _ in pairs):
            raise DistilError("the query is empty; give a question")
        if not all(text.strip() for _, text in pairs):
            raise DistilError("a document holds no text; leave it out")
        windows = self.reader.cut_pairs(pairs)
        of_window: dict[int, list[QACandidate]] = {}
        for batch, starts, ends in self.reader.logits(windows, range(len(windows))):
            for window, candidates in zip(batch["window"].tolist(), self._candidates(batch, starts, ends), strict=True):
                of_window[window] = candidates
        predictions = []
        for number, (one, (question, text)) in enumerate(zip(objects, pairs, strict=True)):
            own = windows.windows_of_examples(number, number + 1)
            candidates = [of_window[window] for window in own]
            offsets = _to_document(windows, own, candidates)
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

    def _candidates(
        self, batch: dict[str, torch.Tensor], starts: torch.Tensor, ends: torch.Tensor
    ) -> Iterator[list[QACandidate]]:
        """Of each window of a batch the best spans and, last, the no-answer; positions are the window's."""
        padding = batch["attention_mask"] == 0
        start_chances = starts.masked_fill(padding, -torch.inf).softmax(1)
        end_chances = ends.masked_fill(padding, -torch.inf).softmax(1)
        context = batch["context_mask"].clone()
        context[:, 0] = False
        scores, first, last = separate_spans(
            starts, ends, context, self.head.n_best_per_sample, self.head.duplicate_filtering
        )
        first, last = first.clamp(min=0), last.clamp(min=0)
        confidence = (start_chances.gather(1, first) + end_chances.gather(1, last)) / 2
        nothing = zip(
            (starts[:, 0] + ends[:, 0]).tolist(), ((start_chances + end_chances)[:, 0] / 2).tolist(), strict=True
        )
        found = zip(*(table.tolist() for table in (scores, confidence, first, last)), strict=True)
        for row, no_answer in zip(found, nothing, strict=True):
            spans = [span for span in zip(*row, strict=True) if span[0] > -math.inf]
            yield [_candidate("span", *span) for span in spans] + [_candidate("no_answer", *no_answer, 0, 0)]


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


def _to_document(windows: AnyWindows, own: range, candidates: list[list[QACandidate]]) -> list[int]:
    """Move candidates from positions in their windows to tokens of the document, whose first characters are returned.

    The no-answer becomes (-1, -1), as FARM has it.
    """
    rows = windows.__getitems__(own)
    offsets: list[int] = []
    settings, n_suffix = windows.settings, len(windows.template.suffix)
    for number, (head, starts) in enumerate(
        zip(rows.ints("context_start").tolist(), rows.lists("char_starts"), strict=True)
    ):
        first = number * min(settings.doc_stride, settings.max_seq_len - head - n_suffix)
        offsets[first:] = starts.tolist()
        for candidate in candidates[number]:
            if candidate.answer_type == "no_answer":
                candidate.to_doc_level(-1, -1)
            else:
                move = first - head
                candidate.to_doc_level(candidate.offset_answer_start + move, candidate.offset_answer_end + move)
    return offsets
