"""Variants of one example: which texts are edited, which stay, and where the answers stand afterwards."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import zip_longest
from math import ceil
from random import Random
from typing import Any, NamedTuple

from augment.lexicon import Lexicon, TagCounts
from augment.operations import MASK_TOKEN, NGRAM, Edited, apply, edit_words, moved, sample_ngram
from augment.settings import TEXTS, AugmentSettings
from augment.tagging import choose_tagger, make_tagger
from augment.words import TokenizerWords, Words, split_words
from haystack_distill.data.squad.validation import BadExample, Place, Question, Row, check_question
from haystack_distill.errors import DataError, DistilError

_TRIES = 200  # texts that differ from the original are drawn so often before there seems to be no further variant
_MOST_TRIES = 2000


class Text(NamedTuple):
    """A text made ready for editing: its words, and what a masked language model would put in their places."""

    text: str
    words: Words
    candidates: list[list[str]] | None = None


class Variant(NamedTuple):
    """One version of a row, and how each of its texts came about; None for a text that was not edited."""

    row: Row
    question: Edited | None = None
    context: Edited | None = None

    def operations(self) -> dict[str, dict[str, int]]:
        """How many edits of which operation, by text."""
        found = {}
        for name, edited in (("question", self.question), ("context", self.context)):
            if edited is not None:
                counts = Counter(edit.operation for edit in edited.edits)
                if edited.shortened:
                    counts[NGRAM] += 1
                found[name] = dict(counts)
        return found


class Splitter:
    """Splits texts into words and tags them.

    Args:
        settings: tagger and tokenizer are taken from it.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        self._tagger = make_tagger(choose_tagger(settings.tagger))
        self._tokenizer = TokenizerWords(settings.tokenizer) if settings.tokenizer else None
        self._split = lru_cache(maxsize=64)(self._split_anew)  # rows in succession share their context

    def __call__(self, text: str) -> Words:
        """The words of a text."""
        return self._split(text)

    def _split_anew(self, text: str) -> Words:
        if self._tokenizer is not None and self._tagger is None:
            return self._tokenizer(text)
        return split_words(text, self._tagger)


class Augmenter:
    """Makes variants of examples, one example at a time.

    Args:
        settings: what is edited and how.
        counts: how often the corpus has each word with each tag, for POS-guided replacement.
        splitter: of whoever counted, so that it need not be made again.

    Example:
        >>> rows = [{"id": "1", "title": "", "context": "Ada Lovelace wrote the first program.",
        ...          "question": "Who wrote the first program?",
        ...          "answers": {"text": ["Ada Lovelace"], "answer_start": [0]}}]
        >>> augmenter = Augmenter.of(rows, AugmentSettings(multiplication_factor=3, tagger="textblob"))
        >>> [row["id"] for row in augmenter(rows[0])]
        ['1', '1-aug1', '1-aug2']
    """

    def __init__(
        self, settings: AugmentSettings, counts: TagCounts | None = None, splitter: Splitter | None = None
    ) -> None:
        self.settings = settings
        self.lexicon = Lexicon(counts or TagCounts())
        self._splitter = splitter
        self._contextual: Any = None
        self.mask_token = mask_token_of(settings)

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]], settings: AugmentSettings | None = None) -> "Augmenter":
        """An augmenter that draws its words from the contexts and questions of `rows`.

        A context that several rows in succession share counts once.
        """
        settings = settings or AugmentSettings()
        splitter = Splitter(settings)
        counts = TagCounts()
        context = None
        for row in rows:
            if row["context"] != context:
                context = row["context"]
                counts.add(context, splitter(context))
            counts.add(row["question"], splitter(row["question"]))
        return cls(settings, counts, splitter)

    def __call__(self, example: dict[str, Any]) -> list[dict[str, Any]]:
        """The example and its variants, in the form of `haystack_distill.data.squad.load.load_examples`.

        Fewer than `multiplication_factor` come back where its texts have too few distinct variants. With `provenance`
        each has the key `augmentation`: the id of the original, and by text how many edits of which operation.

        Raises:
            DataError: an answer that is not at its `answer_start`, and whatever else the reader rejects.
        """
        row = _row_of(example, self.settings.multiplication_factor)
        question, context = self.prepare([row.question], [row.context])
        made = []
        for variant in self.variants(row, question, context):
            made.append(variant.row.to_example())
            if self.settings.provenance:
                made[-1]["augmentation"] = {"of": row.id, **variant.operations()}
        return made

    def prepare(self, questions: Sequence[str], contexts: Sequence[str]) -> list[Text]:
        """Questions, then contexts, with their words, tags and candidates.

        It is done once a text, however many variants are made; a text that is not to be edited needs no candidates.
        """
        texts = [*questions, *contexts]
        if self._splitter is None:
            self._splitter = Splitter(self.settings)
        made = [Text(text, self._splitter(text)) for text in texts]
        if self.settings.model is None:
            return made
        if self._contextual is None:
            from augment.contextual import ContextualCandidates  # brings torch and transformers

            self._contextual = ContextualCandidates(self.settings)
        first = len(questions) if self.settings.augment == "context" else 0
        stop = len(questions) if self.settings.augment == "question" else len(made)
        edited = range(first, stop)
        candidates = self._contextual(
            [made[number].text for number in edited], [made[number].words.spans for number in edited]
        )
        for number, of_text in zip(edited, candidates, strict=True):
            made[number] = made[number]._replace(candidates=of_text)
        return made

    def variants(self, row: Row, question: Text, context: Text) -> Iterator[Variant]:
        """The row itself and up to `multiplication_factor` - 1 different variants of it, one by one.

        They depend on the seed and the row alone, and those of a smaller factor come first. The probabilities hold for
        what is drawn; what was there already is then dropped, so short texts are edited more often than that.
        """
        settings = self.settings
        random = Random(f"{settings.seed}\0{row.id}")
        every_word = range(len(question.words))
        outside = context.words.outside(
            [(start, start + len(text)) for text, start in zip(row.texts, row.starts, strict=True)]
        )
        same = (
            self._chance_of_none(question, every_word, settings.p_ng),
            self._chance_of_none(context, outside, settings.p_ng if settings.context_ngrams else 0.0),
        )
        tries = {"question": _tries(same[0]), "context": _tries(same[1]), "both": _tries(same[0] * same[1])}
        seen = {(row.question, row.context)}

        def draw(turn: str) -> Variant | None:
            for _ in range(tries[turn]):
                new_question = new_context = None
                if turn != "context":
                    new_question = self._edit(question, every_word, random, ngrams=True)
                if turn != "question":
                    new_context = self._edit(context, outside, random, ngrams=settings.context_ngrams)
                texts = (
                    new_question.text if new_question else row.question,
                    new_context.text if new_context else row.context,
                )
                if texts not in seen:
                    seen.add(texts)
                    return Variant(
                        self._varied(row, len(seen) - 1, *texts, new_context),
                        new_question if texts[0] != row.question else None,
                        new_context if texts[1] != row.context else None,
                    )
            return None

        yield Variant(self._without_labels(row) if settings.drop_labels else row)
        for number in range(settings.multiplication_factor - 1):
            turns = [settings.augment]
            if settings.augment == "both":  # where one text cannot be varied further, the others may
                turns = [TEXTS[(number + later) % 3] for later in range(3)]
            variant = next((found for found in map(draw, turns) if found is not None), None)
            if variant is None:
                return
            yield variant

    def _chance_of_none(self, text: Text, editable: Sequence[int], p_ng: float) -> float:
        """How likely it is that a draw leaves a text as it is."""
        settings = self.settings
        contextual = settings.replace_probability if text.candidates is not None else 0.0
        share = settings.p_mask + settings.chance_of_replacement + contextual
        return max(1 - share, 0.0) ** len(editable) * (1 - p_ng if len(text.words) else 1.0)

    def _edit(self, text: Text, editable: Sequence[int], random: Random, *, ngrams: bool) -> Edited:
        settings = self.settings
        edits = edit_words(
            text.text,
            text.words,
            editable,
            random,
            p_mask=settings.p_mask,
            p_pos=settings.chance_of_replacement,
            mask_token=self.mask_token,
            lexicon=self.lexicon,
            replace_probability=settings.replace_probability,
            candidates=text.candidates,
        )
        kept = sample_ngram(text.words, random, settings.p_ng, settings.longest_ngram) if ngrams else None
        return apply(text.text, edits, kept)

    def _varied(self, row: Row, number: int, question: str, context: str, edited: Edited | None) -> Row:
        texts, starts, labelled = row.texts, row.starts, row.labelled
        if edited is not None and texts:
            places = moved(starts, [len(text) for text in texts], edited)
            alive = [(text, place) for text, place in zip(texts, places, strict=True) if place is not None]
            texts, starts = [text for text, _ in alive], [place for _, place in alive]
            # Cut off with its n-gram, the answer is unknown, which is not the same as there being none.
            labelled = labelled and bool(texts)
        varied = row._replace(
            id=f"{row.id}-aug{number}",
            question=question,
            context=context,
            texts=texts,
            starts=starts,
            labelled=labelled,
        )
        return self._without_labels(varied) if self.settings.drop_labels else varied

    @staticmethod
    def _without_labels(row: Row) -> Row:
        return row._replace(texts=[], starts=[], is_impossible=False, labelled=False)


def augmented(examples: Iterable[dict[str, Any]], settings: AugmentSettings | None = None) -> Iterator[dict[str, Any]]:
    """The examples and their variants one by one: as `datasets.Dataset.from_generator` takes them.

    Args:
        examples: can be iterated over twice, such as a `datasets.Dataset`: once to count words, once to make variants.
        settings: what is edited and how.

    Raises:
        DistilError: an iterator, which can be iterated over only once.
    """
    if iter(examples) is examples:
        raise DistilError("the examples can be iterated over only once, but words are counted first: give a list")
    augmenter = Augmenter.of(examples, settings)
    for example in examples:
        yield from augmenter(example)


def mask_token_of(settings: AugmentSettings) -> str:
    """What a masked word becomes: the settings' mask token, else the tokenizer's, else BERT's."""
    if settings.mask_token:
        return settings.mask_token
    return TokenizerWords(settings.tokenizer).mask_token if settings.tokenizer else MASK_TOKEN


def require_free_id(id_: str, factor: int) -> None:
    """Check that an id is not one that a variant of another row may get.

    Raises:
        BadExample: it is.
    """
    base, dash, number = id_.rpartition("-aug")
    if base and dash and number.isdecimal() and 1 <= int(number) < factor:
        raise BadExample(
            "id of a variant",
            f'the id is one that augmenting gives to a variant of "{base}": augment the file that this one was made '
            "from, or rename the question",
        )


def _tries(same: float) -> int:
    """So many that about `_TRIES` of them differ from the original."""
    return 0 if same >= 1 else min(_MOST_TRIES, ceil(_TRIES / (1 - same)))


def _row_of(example: dict[str, Any], factor: int) -> Row:
    answers = example.get("answers") or {"text": [], "answer_start": []}
    if not (
        isinstance(answers, dict) and all(isinstance(answers.get(name), list) for name in ("text", "answer_start"))
    ):
        raise DataError(
            f"question {example.get('id')!r}: answers must be a mapping of two lists, text and answer_start; load the "
            "data with load_examples"
        )
    qa = {
        "id": example.get("id"),
        "question": example.get("question"),
        "answers": [
            {"text": text, "answer_start": start}
            for text, start in zip_longest(answers["text"], answers["answer_start"])
        ],
        "is_impossible": example.get("is_impossible", not answers["text"] and example.get("labelled", True)),
        "labelled": example.get("labelled", True),
    }
    place = Place("example", 0)
    try:
        row = check_question(Question(place, example.get("title") or "", {"context": example.get("context")}, qa))
        require_free_id(row.id, factor)
    except BadExample as bad:
        raise DataError(f"question {example.get('id')!r}: {bad}") from None
    return row
