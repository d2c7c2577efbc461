"""What `augment_squad` reports."""

from dataclasses import dataclass
from pathlib import Path

from augment.tally import Tally


@dataclass(frozen=True)
class AugmentReport:
    """What `augment_squad` did.

    Attributes:
        output: the file that was written.
        tally: rows in and out, and edits by operation.
        tagger: which tagger it was.
        seconds: how long it took; a resumed run counts from where it resumed.
        resumed: whether it resumed an interrupted run.
    """

    output: Path
    tally: Tally
    tagger: str
    seconds: float
    resumed: bool
