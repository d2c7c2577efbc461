"""What is done to one article: it is made ready for editing, and later becomes its part of the output."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from augment.articles import Article, Paragraph
from augment.augmenter import Augmenter, Variant
from augment.lexicon import TagCounts
from augment.settings import AugmentSettings
from augment.tally import Tally
from haystack_distill.data.squad.validation import Row
from haystack_distill.utils.atomic import write_atomically

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Worker:
    """Works on the articles of one job; each process has its own.

    Args:
        settings: what is edited and how; its tagger is one that `choose_tagger` returned.
        work: the job's working directory.
    """

    def __init__(self, settings: AugmentSettings, work: Path) -> None:
        self._settings = settings
        self._work = work
        # Made when needed: a tagger and a lexicon take long.
        self._reader: Augmenter | None = None
        self._writer: Augmenter | None = None

    def prepare(self, name: str, title: str, rows: list[Row]) -> dict[str, Counter[str]]:
        """Write one article with its words and candidates to `articles/<name>.json`; count its words by tag."""
        path = self._work / "articles" / f"{name}.json"
        if path.exists():  # from the run that was interrupted
            article = Article.read(path)
        else:
            article = self._prepared(title, rows)
            article.write(path)
        counts = TagCounts()
        for context, questions in article.paragraphs:
            counts.add(context.text, context.words)
            for _, question in questions:
                counts.add(question.text, question.words)
        return counts.counts

    def _prepared(self, title: str, rows: list[Row]) -> Article:
        if self._reader is None:
            self._reader = Augmenter(self._settings)
        paragraphs = [(context, list(group)) for context, group in itertools.groupby(rows, key=lambda row: row.context)]
        ready = self._reader.prepare([row.question for row in rows], [context for context, _ in paragraphs])
        questions, contexts = iter(ready[: len(rows)]), iter(ready[len(rows) :])
        return Article(
            title, [Paragraph(next(contexts), [(row, next(questions)) for row in group]) for _, group in paragraphs]
        )

    def write_part(self, name: str) -> Tally:
        """Write one article's part of the output to `parts/<name>.part`, and what was done beside it."""
        part = self._work / "parts" / f"{name}.part"
        done = part.with_suffix(".json")
        if done.exists():  # it is written last
            return Tally.read(done)
        if self._writer is None:
            self._writer = Augmenter(self._settings, TagCounts.read(self._work / "draws.json"))
        augmenter = self._writer
        article = Article.read(self._work / "articles" / f"{name}.json")
        tally = Tally()

        def fill(aside: Path) -> None:
            with open(aside, "w", encoding="utf-8", newline="\n") as file:
                file.write(f'{{"title":{_encode(article.title)},"paragraphs":[')
                for number, paragraph in enumerate(article.paragraphs):
                    file.write("," if number else "")
                    file.writelines(_paragraphs(paragraph, augmenter, tally))
                file.write("]}")

        write_atomically(part, fill)
        tally.write(done)
        return tally


def _paragraphs(paragraph: Paragraph, augmenter: Augmenter, tally: Tally) -> Iterator[str]:
    """A paragraph with its questions as they were; then, row by row, each edited context, and the edited questions.

    One variant is held at a time, so that memory does not grow with the factor.
    """
    settings = augmenter.settings
    context = paragraph.context
    versions = [augmenter.variants(row, question, context) for row, question in paragraph.rows]
    originals = [next(of_row) for of_row in versions]
    qas = ",".join(_qa(original, original.row.id, settings) for original in originals)
    yield f'{{"context":{_encode(context.text)},"qas":[{qas}]}}'
    for original, of_row in zip(originals, versions, strict=True):
        count = 1
        beside: list[str] = []  # edited questions, which share the unedited context
        for variant in of_row:
            count += 1
            operations = variant.operations()
            for text, edits in operations.items():
                tally.edited_rows[text] += 1
                tally.edits.update(edits)
            qa = _qa(variant, original.row.id, settings)
            if variant.context is None:
                beside.append(qa)
            else:
                yield f',{{"context":{_encode(variant.row.context)},"qas":[{qa}]}}'
        if beside:
            yield f',{{"context":{_encode(context.text)},"qas":[{",".join(beside)}]}}'
        tally.rows_in += 1
        tally.rows_out += count
        tally.short += count < settings.multiplication_factor


def _qa(variant: Variant, original_id: str, settings: AugmentSettings) -> str:
    row = variant.row
    qa: dict[str, Any] = {
        "id": row.id,
        "question": row.question,
        "answers": [{"text": text, "answer_start": start} for text, start in zip(row.texts, row.starts, strict=True)],
        # Other tools know no other word for a question without answers.
        "is_impossible": row.is_impossible or not row.texts,
    }
    if not row.labelled:
        qa["labelled"] = False
    if settings.provenance:
        qa["augmentation"] = {"of": original_id, **variant.operations()}
    return _encode(qa)
