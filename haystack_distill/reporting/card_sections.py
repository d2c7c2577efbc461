"""Sections that are added to a reader's model card after it was written: by `calibrate` and `export`."""

import re
from pathlib import Path

from huggingface_hub import ModelCard

from haystack_distill.reporting.model_card import CARD_FILE
from haystack_distill.utils.atomic import write_atomically

_LIMITS = re.compile(r"^## Limits$", re.MULTILINE)
# Around the text of a section that may be replaced.
_OURS, _END = "<!-- written by haystack-distill -->", "<!-- end of what haystack-distill wrote -->"


def read_card(directory: Path) -> str | None:
    """The text of the model card in a directory; None without one."""
    file = directory / CARD_FILE
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def add_section(directory: Path, card: str, title: str, text: str) -> Path:
    """Write a model card with a section, in place of an earlier one that this function wrote, to a reader's directory.

    Args:
        directory: The directory of the reader.
        card: The text of the card that the reader had before.
        title: The title of the section.
        text: Its content, in Markdown.
    """
    kept = without_section(card, title)
    section = f"{_heading(title)}\n{text}\n\n{_END}\n\n"
    limits = _LIMITS.search(kept)
    if limits is None:
        written = f"{kept.rstrip()}\n\n{section.rstrip()}\n"
    else:
        written = kept[: limits.start()] + section + kept[limits.start() :]
    return write_card(directory, written)


def without_section(card: str, title: str) -> str:
    """A model card without a section that `add_section` wrote."""
    heading = re.escape(_heading(title))
    return re.sub(rf"^{heading}.*?^{re.escape(_END)}\n*", "", card, flags=re.MULTILINE | re.DOTALL)


def without_results(card: str) -> str:
    """A model card without the figures in its front matter, which the hub publishes as those of the model."""
    if not card.startswith("---"):
        return card
    parsed = ModelCard(card, ignore_metadata_errors=True)
    named = [name for name in ("eval_results", "metrics") if parsed.data.get(name)]
    for name in named:
        setattr(parsed.data, name, None)
    return str(parsed) if named else card


def write_card(directory: Path, card: str) -> Path:
    """Write the text of a model card to a directory."""
    write_atomically(directory / CARD_FILE, lambda temporary: temporary.write_text(card, encoding="utf-8"))
    return directory / CARD_FILE


def _heading(title: str) -> str:
    return f"## {title}\n{_OURS}\n"
