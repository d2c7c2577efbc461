"""The statistics file of a job: how often each word of a whole file has each tag, for all shards to draw from."""

import json
from pathlib import Path

from augment.lexicon import TagCounts
from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.hashing import hash_file


def write_statistics(path: Path, counts: TagCounts, tagger: str, source: Path) -> None:
    """Write the counts of `source` as JSON, with its hash and the tagger."""
    write_json(path, {"tagger": tagger, "input": hash_file(source), "counts": counts.as_json()})


def read_statistics(path: str | Path, source: Path, tagger: str) -> tuple[TagCounts, str]:
    """The counts, and the tagger they were made with.

    Args:
        path: what `write_statistics` wrote.
        source: the file that is multiplied.
        tagger: the tagger that was chosen; "auto" takes that of the statistics.

    Raises:
        DataError: not a statistics file, or one of another input.
        DistilError: it was made with another tagger.
    """
    path = expand_user(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make it with --statistics_only") from error
    if not isinstance(content, dict) or not isinstance(content.get("tagger"), str):
        raise DataError(f"{path}: not a statistics file; make it with --statistics_only")
    if content.get("input") != hash_file(source):
        raise DataError(f"{path}: these are the statistics of another file than {source}; make them again")
    if tagger not in ("auto", content["tagger"]):
        raise DistilError(
            f"{path} was made with the tagger {content['tagger']!r}, not with {tagger!r}: leave the tagger out, or "
            "make the statistics again"
        )
    return TagCounts.from_json(content.get("counts"), str(path)), content["tagger"]
