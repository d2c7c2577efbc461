"""What augmenting does, to look at: originals beside variants, and a table of what was done."""

import itertools
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from augment.augmenter import Augmenter
from augment.operations import CONTEXTUAL, MASK, NGRAM, OPERATIONS, REPLACE, Edited
from augment.report import AugmentReport
from augment.settings import AugmentSettings
from haystack_distill.data.squad.intake import Intake
from haystack_distill.data.squad.json_files import questions_in_file

_COLOURS = {MASK: "bold magenta", REPLACE: "bold green", CONTEXTUAL: "bold cyan"}
_ROWS_COUNTED = 500  # enough words to draw from for a look


def preview(path: Path, settings: AugmentSettings, rows: int, console: Console, *, skip: bool = False) -> None:
    """Print the first rows of a file beside a few variants of each, edits in colour. Nothing is written.

    Words are drawn from the first 500 questions and their contexts, not from the whole file. `skip` leaves bad
    questions out.
    """
    intake = Intake([(str(path), partial(questions_in_file, path))], skip=skip)
    found = [row for _, row in itertools.islice(intake.rows(), max(_ROWS_COUNTED, rows))]
    augmenter = Augmenter.of((row._asdict() for row in found), settings)
    for row in found[:rows]:
        question, context = augmenter.prepare([row.question], [row.context])
        table = Table("", "question", "context", title=RichText(row.id), show_lines=True, title_justify="left")
        table.add_row("original", RichText(row.question), _with_answers(row.context, row.texts, row.starts))
        for variant in itertools.islice(augmenter.variants(row, question, context), 1, 6):
            table.add_row(
                variant.row.id.removeprefix(row.id),
                _coloured(row.question, variant.question),
                _coloured(row.context, variant.context),
            )
        console.print(table)
    console.print(RichText("  ").join(RichText(name, style=style) for name, style in _COLOURS.items()))


def _with_answers(context: str, texts: list[str], starts: list[int]) -> RichText:
    marked = RichText(context)
    for text, start in zip(texts, starts, strict=True):
        marked.stylize("underline", start, start + len(text))
    return marked


def _coloured(original: str, edited: Edited | None) -> RichText:
    if edited is None:
        return RichText("unchanged", style="dim")
    begin, stop = edited.kept
    coloured = RichText("… " if edited.shortened else "")
    done = begin
    for edit in edited.edits:
        coloured.append(original[done : edit.start])
        coloured.append(edit.text, style=_COLOURS[edit.operation])
        done = edit.end
    return coloured.append(original[done:stop])


_NAMES = {
    MASK: "masking",
    REPLACE: "POS-guided replacement",
    CONTEXTUAL: "contextual replacement",
    NGRAM: "n-gram sampling",
}


def summary(report: AugmentReport, factor: int) -> Table:
    """A table of what was done."""
    tally = report.tally
    table = Table(title=RichText(str(report.output)), title_justify="left", show_header=False)
    table.add_row("rows in", f"{tally.rows_in:,}")
    table.add_row("rows out", f"{tally.rows_out:,}")
    if not report.resumed:  # else some of them were made before
        table.add_row("rows a second", f"{tally.rows_out / max(report.seconds, 1e-9):,.0f}")
    variants = max(tally.rows_out - tally.rows_in, 1)
    for operation in OPERATIONS:
        made = tally.edits[operation]
        unit = "of the variants" if operation == NGRAM else "a variant"
        share = f"{made / variants:.1%}" if operation == NGRAM else f"{made / variants:.2f}"
        if made or operation != CONTEXTUAL:  # which only runs where a language model is given
            table.add_row(_NAMES[operation], f"{made:,}: {share} {unit}" if made else "not used")
    for name in ("question", "context"):
        table.add_row(f"variants with an edited {name}", f"{tally.edited_rows[name] / variants:.1%}")
    table.add_row("distinct share of what was asked for", f"{tally.rows_out / max(tally.rows_in * factor, 1):.1%}")
    table.add_row("tagger", report.tagger)
    return table
