"""Multiply a SQuAD-format file.

python -m augment.augment_squad --squad_path train.json --output_path augmented.json --multiplication_factor 20
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from augment.augmenter import mask_token_of
from augment.job import BadInput, Job, OnProgress, alone, blaming
from augment.lexicon import TagCounts
from augment.paths import require_output, require_readable
from augment.processes import ProcessEnded, Processes
from augment.report import AugmentReport
from augment.settings import AugmentSettings, RunSettings, settings_from
from augment.tag_statistics import read_statistics, write_statistics
from augment.tagging import choose_tagger
from haystack_distill.errors import DistilError, WriteError
from haystack_distill.utils.files import expand_user, is_stream, temporary_directory
from haystack_distill.utils.options import options_of, takes_options

logger = logging.getLogger(__name__)

OPTIONS = (*options_of(AugmentSettings), *options_of(RunSettings))
# Behind the two paths, the parameters of Haystack 1's function of this name, in its order.
_BY_POSITION = (
    *("glove_path", "model", "tokenizer", "multiplication_factor"),
    *("word_possibilities", "replace_probability", "device", "batch_size"),
)
# The options of `make_statistics`.
COUNTING: tuple[str, ...] = (
    "tagger",
    "num_processes",
    "on_bad_example",
    "overwrite",
)


@takes_options(OPTIONS, positional=_BY_POSITION)
def augment_squad(
    squad_path: str | Path, output_path: str | Path, *, on_progress: OnProgress | None = None, **options: Any
) -> AugmentReport:
    """Write a SQuAD-format file with `multiplication_factor` versions of each row, the original first.

    Answers keep correct offsets: words of an answer are never edited. Ids are those of the originals with `-aug1`,
    `-aug2`, ... behind them. Keys that are not SQuAD's (and `plausible_answers`) are left out. The output is whole or
    not there; an interrupted run leaves a hidden directory beside it, from which the same call resumes. The output
    depends on the input, the settings and the tagger alone.

    The options are the fields of `AugmentSettings` and `RunSettings`. The first ten parameters are those of Haystack
    1's function of this name, except that `model` is None by default (no contextual replacement) and that `tokenizer`
    serves only for the mask token and, without a tagger, for splitting texts into words.

    Args:
        squad_path: SQuAD-format JSON, plain or gzip, or a table (CSV, JSON lines, Parquet).
        output_path: Where to write; gzip where the name ends in .gz.
        on_progress: Called with the stage ("reading" or "augmenting"), rows done since the last call, and rows in all
            where that is known.

    Raises:
        DataError: the input is not valid SQuAD data, or its ids are already those of an augmented file.
        DistilError: a value that cannot be, an option that has no effect, an output that cannot be written, or a
            tagger that is not available.
    """
    began = time.monotonic()
    if "device" in options:
        options["device"] = str(options["device"])  # Haystack 1 takes a torch.device
    settings, run = settings_from(options)
    source, output = _checked(squad_path, output_path, run)
    counts, tagger = None, settings.tagger
    if run.statistics is not None:
        counts, tagger = read_statistics(run.statistics, source, settings.tagger)
    settings = settings.with_tagger(choose_tagger(tagger))
    mask_token_of(settings)  # a missing tokenizer is better known before the work than in the middle of it
    progress = on_progress or _silent
    with _job_at(output, source, settings, run, counts) as (job, resumed):
        with Processes(run.num_processes, settings, job.work) as processes:
            found = job.read(processes, progress)
            tally = job.write(found, processes, progress)
        job.join(output)
    if tally.short:
        logger.warning(
            "%d of %d rows have too few distinct variants; %d rows were written instead of %d",
            tally.short,
            tally.rows_in,
            tally.rows_out,
            tally.rows_in * settings.multiplication_factor,
        )
    return AugmentReport(output, tally, settings.tagger, time.monotonic() - began, resumed)


@takes_options([option for option in OPTIONS if option.name in COUNTING])
def make_statistics(
    squad_path: str | Path, output_path: str | Path, *, on_progress: OnProgress | None = None, **options: Any
) -> None:
    """Count how often each word of a file has each tag, once for all shards of a job.

    Args:
        squad_path: The whole file, in any form that `augment_squad` reads.
        output_path: Where the counts go, as JSON.
        on_progress: Called with the stage ("reading"), rows done since the last call, and rows in all where that is
            known.

    Raises:
        DataError: the input is not valid SQuAD data.
        DistilError: a value that cannot be, an output that cannot be written, or a tagger that is not available.
    """
    settings, run = settings_from(options)
    source, output = _checked(squad_path, output_path, run)
    settings = settings.with_tagger(choose_tagger(settings.tagger))
    with _job_at(output, source, settings, run, None) as (job, _):
        with Processes(run.num_processes, settings, job.work) as processes:
            counts = job.read(processes, on_progress or _silent)
        write_statistics(output, counts, settings.tagger, source)


@contextmanager
def _job_at(
    output: Path, source: Path, settings: AugmentSettings, run: RunSettings, statistics: TagCounts | None
) -> Iterator[tuple[Job, bool]]:
    """A job that works beside its output, and whether it resumes an interrupted one.

    Its working directory is removed when the job is done, and when nothing in it is worth resuming from. Where the
    output is a device or a pipe, it is a temporary one.
    """
    with ExitStack() as stack:
        beside = Path(stack.enter_context(temporary_directory())) / output.name if is_stream(output) else output
        work = beside.with_name(f".{output.name}.work")
        job = Job(source, settings, run, work, statistics)
        stack.enter_context(blaming(work))
        stack.enter_context(alone(work))
        resumed = job.begin()
        try:
            yield job, resumed
        except BadInput as bad:
            shutil.rmtree(work)
            raise bad.error from None
        except (WriteError, ProcessEnded):
            raise  # what is done is kept: there is only room missing, or memory
        except DistilError:
            if not resumed:
                shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def _checked(squad_path: str | Path, output_path: str | Path, run: RunSettings) -> tuple[Path, Path]:
    """Input and output as paths, links followed, after what can be known to be wrong before the work begins."""
    source, output = expand_user(squad_path), expand_user(output_path)
    require_readable(source)
    require_output(output, [source], run.overwrite)
    if output.is_symlink() and not is_stream(output):  # else it would be replaced by the file
        output = Path(os.path.realpath(output))
    return source, output


def _silent(stage: str, rows: int, total: int | None) -> None:
    """Nobody is watching."""


if __name__ == "__main__":
    from augment.command import main

    main()
