"""One file multiplied: article by article, in several processes, on disk throughout, and resumable.

Two passes, with a working directory beside the output. The first reads the input once, checks it, splits and tags each
text once and counts the words; each article becomes a file. The second turns each article into its part of the output.
The parts are then joined aside and renamed. What a part holds depends on the settings, the counts and the article
alone, so neither the number of processes nor where a run was interrupted shows in the output.
"""

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from augment.augmenter import require_free_id
from augment.lexicon import TagCounts
from augment.processes import Processes
from augment.settings import AugmentSettings, RunSettings
from augment.tally import Tally
from haystack_distill.data.squad.intake import Intake, log_warnings
from haystack_distill.data.squad.json_files import count_questions, questions_in_file, write_compressed
from haystack_distill.data.squad.validation import Place, Row
from haystack_distill.errors import DataError, DistilError, WriteError
from haystack_distill.utils.atomic import move_into_place, write_json
from haystack_distill.utils.files import expand_user, system_reason
from haystack_distill.utils.hashing import hash_file, hash_json

logger = logging.getLogger(__name__)

_FORMAT = 1  # raise it when the same input and settings would give another output
_BLOCK = 2**20
_TABLE_ROWS = 100  # of a table, which has no articles, in one file of the working directory
PACKING = 6  # of an output; the highest level takes several times as long on gigabytes
_PLACES = ("model", "tokenizer", "glove_path")  # settings that name files, which another machine keeps elsewhere

OnProgress = Callable[[str, int, int | None], None]  # stage, rows done since the last call, rows in all


class BadInput(Exception):
    """The input is not what it should be, so there is nothing to resume; `error` has the reason."""

    def __init__(self, error: DataError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Job:
    """What is to be made of which file; everything that decides the output's bytes.

    Attributes:
        source: the SQuAD-format file.
        settings: what is edited and how; its tagger is one that `choose_tagger` returned.
        run: which shard it is, and what happens to bad examples.
        work: the working directory.
        statistics: counts of words to draw from; None counts those of the source.
    """

    source: Path
    settings: AugmentSettings
    run: RunSettings
    work: Path
    statistics: TagCounts | None

    def plan(self) -> dict[str, Any]:
        """What decides the output, but for which shard of it this is and where its files lie."""
        settings = asdict(self.settings)
        return {
            "format": _FORMAT,
            "settings": {name: value for name, value in settings.items() if name not in _PLACES},
            "on_bad_example": self.run.on_bad_example,
            "input": hash_file(self.source),
            "statistics": None if self.statistics is None else hash_json(self.statistics.as_json()),
        }

    def begin(self) -> bool:
        """Make the working directory, or find that an interrupted run of the same job left it; return whether."""
        places = [getattr(self.settings, name) for name in _PLACES]
        plan = self.plan() | {
            "shard": None if self.run.part is None else list(self.run.part),
            "files": [[place, _stamp(place)] for place in places],
        }
        path = self.work / "plan.json"
        if path.exists():
            if _is(path, plan):
                logger.info("resuming the interrupted run in %s", self.work)
                return True
            logger.warning("%s is of an interrupted run of another input or other settings: starting again", self.work)
        if self.work.exists():
            shutil.rmtree(self.work)
        for name in ("articles", "parts"):
            (self.work / name).mkdir(parents=True)
        write_json(path, plan)
        return False

    def read(self, processes: Processes, progress: OnProgress) -> TagCounts:
        """The first pass: articles on disk, and how often each word has which tag in all of them.

        Raises:
            BadInput: something is wrong with the input.
        """
        counted = self.work / "counts.json"
        if counted.exists():  # by the run that was interrupted
            return TagCounts.read(counted)
        intake = Intake(
            [(str(self.source), partial(questions_in_file, self.source))],
            skip=self.run.on_bad_example == "skip",
            also=lambda row: require_free_id(row.id, self.settings.multiplication_factor),
        )
        counts = TagCounts()
        for found in processes.each("prepare", self._articles(intake, progress)):
            counts.merge(TagCounts(found))
        log_warnings(str(self.source), intake.reports[0])
        write_json(counted, counts.as_json())
        return counts

    def write(self, counts: TagCounts, processes: Processes, progress: OnProgress) -> Tally:
        """The second pass: each article's part of the output, and what happened in all of them."""
        draws = counts if self.statistics is None else self.statistics
        write_json(self.work / "draws.json", draws.as_json())
        articles = _names(self.work / "articles", ".json")
        rows = sum(int(name.split("-")[1]) for name in articles)
        total = Tally()
        for tally in processes.each("write_part", ((name,) for name in articles)):
            total.add(tally)
            progress("augmenting", tally.rows_out, rows * self.settings.multiplication_factor)
        return total

    def join(self, output: Path) -> None:
        """The parts in their order as one file."""
        parts = _names(self.work / "parts", ".part")
        mark = ""
        if self.run.part is not None:
            number, of = self.run.part
            mark = f',"shard":"{number}/{of}","job":"{hash_json(self.plan())}"'

        def fill(file: IO[bytes]) -> None:
            file.write(f'{{"version":"v2.0"{mark},"data":['.encode())
            for number, name in enumerate(parts):
                file.write(b",\n" if number else b"\n")
                with open(self.work / "parts" / f"{name}.part", "rb") as part:
                    shutil.copyfileobj(part, file, _BLOCK)
            file.write(b"\n]}\n")

        joined = self.work / "joined"  # in there it goes with the rest if this is interrupted
        write_compressed(joined, fill, packed=output.name.endswith(".gz"), level=PACKING)
        move_into_place(joined, output)

    def _articles(self, intake: Intake, progress: OnProgress) -> Iterator[tuple[str, str, list[Row]]]:
        """The checked articles of this shard, as arguments of `Worker.prepare`."""
        number, of = self.run.part or (1, 1)
        try:
            total = count_questions(self.source)
            for position, (_, items) in enumerate(itertools.groupby(intake.rows(), key=_article_of)):
                rows = [row for _, row in items]
                progress("reading", len(rows), total)
                if position % of == number - 1:
                    yield f"{position:08d}-{len(rows)}", rows[0].title, rows
        except DataError as error:
            raise BadInput(error) from error


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Keep others from working in the same directory meanwhile.

    Raises:
        DistilError: another run is at it.
    """
    lock = FileLock(work.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DistilError(
            f"another run is writing the same output (it works in {work}): wait for it, or choose another output_path"
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def blaming(folder: Path) -> Iterator[None]:
    """What the system refuses in here is the output directory's fault; a full disk, most often.

    Raises:
        WriteError: it refused something in `folder`, or did not name the place.
    """
    try:
        yield
    except (OSError, WriteError) as error:
        elsewhere = isinstance(error, OSError) and _is_outside(error.filename, folder)
        if elsewhere:  # a file that is read, such as a tagger's
            raise DistilError(f"{error.filename}: {error.strerror}") from error  # type: ignore[union-attr]
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise WriteError(
            f"cannot write to {folder} ({system_reason(cause) or error}): make room there and run the same again, "
            "which continues from here, or choose another output_path"
        ) from error


def _is_outside(name: Any, folder: Path) -> bool:
    """Whether a file that an error names is somewhere else than `folder` and what is beside it."""
    return isinstance(name, str) and not Path(os.path.abspath(name)).is_relative_to(os.path.abspath(folder.parent))


def _is(path: Path, content: Any) -> bool:
    """Whether a JSON file holds this; one that was cut off holds nothing."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == content)
    except ValueError:
        return False


def _article_of(item: tuple[Place, Row]) -> tuple[int, str]:
    """What rows are worked on together: an article, or so many rows of a table as have one title."""
    place, row = item
    return (place.article, "") if place.title is not None else (place.article // _TABLE_ROWS, row.title)


def _names(folder: Path, suffix: str) -> list[str]:
    """File names without their suffix, in order."""
    return sorted(name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix) and name[0] != ".")


def _stamp(name: str | None) -> list[list[Any]]:
    """Sizes and times of a file, or of the files of a directory: whether it is still what it was."""
    path = expand_user(name) if name else None
    if path is None or not path.exists():
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
