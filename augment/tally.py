"""What became of rows, counted."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from haystack_distill.utils.atomic import write_json


@dataclass
class Tally:
    """What became of some rows.

    Attributes:
        rows_in: rows read.
        rows_out: rows written, the originals included.
        short: rows that have too few distinct variants.
        edits: edits made, by operation; an n-gram counts once.
        edited_rows: rows with an edited question, and with an edited context.
    """

    rows_in: int = 0
    rows_out: int = 0
    short: int = 0
    edits: Counter[str] = field(default_factory=Counter)
    edited_rows: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Count another part too."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.short += other.short
        self.edits.update(other.edits)
        self.edited_rows.update(other.edited_rows)

    def write(self, path: Path) -> None:
        """Keep the tally as JSON."""
        write_json(path, vars(self))

    @classmethod
    def read(cls, path: Path) -> "Tally":
        """A tally from its JSON file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {name: Counter(content[name]) for name in ("edits", "edited_rows")})
