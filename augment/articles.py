"""An article made ready for editing, and its file: each text is split, tagged and guessed at once."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from augment.augmenter import Text
from augment.words import Words
from haystack_distill.data.squad.validation import Row
from haystack_distill.utils.atomic import write_atomically


class Paragraph(NamedTuple):
    """A context, and the questions on it."""

    context: Text
    rows: list[tuple[Row, Text]]  # with the question's words


class Article(NamedTuple):
    """A title and its paragraphs."""

    title: str
    paragraphs: list[Paragraph]

    def write(self, path: Path) -> None:
        """Keep the article in a file, which is whole or not there."""
        paragraphs = [
            {
                "context": _pack(context),
                "rows": [
                    [row.id, row.texts, row.starts, row.is_impossible, row.labelled, _pack(question)]
                    for row, question in rows
                ],
            }
            for context, rows in self.paragraphs
        ]
        content = json.dumps({"title": self.title, "paragraphs": paragraphs}, ensure_ascii=False)
        write_atomically(path, lambda aside: aside.write_text(content, encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> "Article":
        """The article that was written to a file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        title = content["title"]
        paragraphs = []
        for paragraph in content["paragraphs"]:
            context = _unpack(paragraph["context"])
            rows = []
            for id_, texts, starts, is_impossible, labelled, packed in paragraph["rows"]:
                question = _unpack(packed)
                row = Row(
                    id_, title, context.text, question.text, texts, starts, is_impossible, labelled, repaired=False
                )
                rows.append((row, question))
            paragraphs.append(Paragraph(context, rows))
        return cls(title, paragraphs)


def _pack(text: Text) -> list[Any]:
    flat = [offset for span in text.words.spans for offset in span]
    return [text.text, flat, text.words.tags, text.candidates]


def _unpack(packed: list[Any]) -> Text:
    text, flat, tags, candidates = packed
    return Text(text, Words(list(zip(flat[::2], flat[1::2], strict=True)), tags), candidates)
