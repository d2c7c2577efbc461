"""Sections that are added to a reader's model card after it was written: by `calibrate` and `export`."""

import re
from pathlib import Path

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
    heading = f"## {title}\n{_OURS}\n"
    kept = re.sub(rf"^{re.escape(heading)}.*?^{re.escape(_END)}\n*", "", card, flags=re.MULTILINE | re.DOTALL)
    section = f"{heading}\n{text}\n\n{_END}\n\n"
    limits = _LIMITS.search(kept)
    if limits is None:
        written = f"{kept.rstrip()}\n\n{section.rstrip()}\n"
    else:
        written = kept[: limits.start()] + section + kept[limits.start() :]
    write_atomically(directory / CARD_FILE, lambda temporary: temporary.write_text(written, encoding="utf-8"))
    return directory / CARD_FILE
