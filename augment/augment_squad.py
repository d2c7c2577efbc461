"""Multiply a SQuAD-format file, as a function and as a script.

python -m augment.augment_squad --squad_path train.json --output_path augmented.json --multiplication_factor 20
"""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from augment.job import Job, OnProgress, Processes, Tally, blaming
from augment.lexicon import TagCounts
from augment.settings import AugmentSettings
from augment.shards import merge_shards, parse_shard
from augment.show import preview, summary
from augment.tagging import choose_tagger
from haystack_distill.errors import DataError, DistilError
from haystack_distill.files import file_hash, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AugmentReport:
    """What `augment_squad` did.

    Attributes:
        output: the file that was written.
        tally: rows in and out, and edits by operation.
        tagger: which tagger it was.
        seconds: how long it took; a resumed run counts from where it went on.
        resumed: whether it went on with an interrupted run.
    """

    output: Path
    tally: Tally
    tagger: str
    seconds: float
    resumed: bool


def augment_squad(
    squad_path: str | Path,
    output_path: str | Path,
    glove_path: str | Path | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    multiplication_factor: int = AugmentSettings.multiplication_factor,
    word_possibilities: int = AugmentSettings.word_possibilities,
    replace_probability: float = AugmentSettings.replace_probability,
    device: str = AugmentSettings.device,
    batch_size: int = AugmentSettings.batch_size,
    *,
    augment: str = AugmentSettings.augment,
    p_mask: float = AugmentSettings.p_mask,
    p_pos: float = AugmentSettings.p_pos,
    p_ng: float = AugmentSettings.p_ng,
    longest_ngram: int = AugmentSettings.longest_ngram,
    context_ngrams: bool = AugmentSettings.context_ngrams,
    mask_token: str | None = AugmentSettings.mask_token,
    tagger: str = AugmentSettings.tagger,
    drop_labels: bool = AugmentSettings.drop_labels,
    provenance: bool = AugmentSettings.provenance,
    seed: int = AugmentSettings.seed,
    num_processes: int = 1,
    on_bad_example: str = "error",
    overwrite: bool = False,
    shard: str | None = None,
    statistics: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> AugmentReport:
    """Write a SQuAD-format file with `multiplication_factor` versions of each row, the original first.

    Answers keep correct offsets: words of an answer are never edited. Ids are those of the originals with `-aug1`,
    `-aug2`, ... behind them. The output is whole or not there; a run that was interrupted left a hidden directory
    beside it, with which the same call goes on. The output depends on the input, the settings and the tagger alone.

    The first ten parameters are those of Haystack 1's function of this name, but that `model` is None by default (no
    contextual replacement) and that `tokenizer` only tells the mask token and, without a tagger, what a word is.

    Args:
        squad_path: SQuAD-format JSON, plain or gzip.
        output_path: where to write; gzip when the name ends in .gz.
        glove_path: see `AugmentSettings`, as for all parameters up to `seed`.
        model: as above.
        tokenizer: as above.
        multiplication_factor: as above.
        word_possibilities: as above.
        replace_probability: as above.
        device: as above.
        batch_size: as above.
        augment: as above.
        p_mask: as above.
        p_pos: as above.
        p_ng: as above.
        longest_ngram: as above.
        context_ngrams: as above.
        mask_token: as above.
        tagger: as above.
        drop_labels: as above.
        provenance: as above.
        seed: as above.
        num_processes: how many processes work on articles.
        on_bad_example: "error" or "skip", as for `haystack_distill.squad.read_squad`.
        overwrite: replace an output that is there.
        shard: "i/n", to make only every n-th article; needs `statistics`. See `shards.merge_shards`.
        statistics: how often words bear tags, as `make_statistics` writes it; counted in `squad_path` by default.
        on_progress: called with the stage ("reading" or "augmenting"), rows done, and rows in all where that is known.

    Raises:
        DataError: the input is not valid SQuAD data, or its ids are already those of an augmented file.
        DistilError: a value that cannot be, an output that cannot be written, or a tagger that is not here.
    """
    given = locals()
    settings = AugmentSettings(
        **{field.name: given[field.name] for field in fields(AugmentSettings) if field.name != "glove_path"},
        glove_path=None if glove_path is None else str(glove_path),
    )
    began = time.monotonic()
    source, output = Path(squad_path).expanduser(), Path(output_path).expanduser()
    _require_source(source)
    _require_output(output, source, overwrite)
    if num_processes < 1:
        raise DistilError(f"num_processes must be at least 1, not {num_processes}")
    if on_bad_example not in ("error", "skip"):
        raise DistilError(f'on_bad_example must be "error" or "skip", not {on_bad_example!r}')
    if shard is not None and statistics is None:
        raise DistilError(
            "a shard needs the statistics of the whole file, or its words would be drawn from its own articles alone: "
            "make them once (--statistics_only, or make_statistics) and pass them to every shard"
        )
    counts = chosen = None
    if statistics is not None:
        counts, chosen = _read_statistics(Path(statistics), source, settings)
    chosen = choose_tagger(chosen or settings.tagger)
    work = output.with_name(f".{output.name}.work")
    job = Job(source, settings, chosen, work, parse_shard(shard) if shard else (1, 1), on_bad_example)
    with blaming(output.parent):
        resumed = job.begin(counts)
        try:
            with Processes(job, num_processes) as processes:
                found = job.read(processes, on_progress or _silent)
                tally = job.write(counts or found, processes, on_progress or _silent)
        except DataError:  # nothing of a bad input is worth going on with
            shutil.rmtree(work)
            raise
        job.join(output)
        shutil.rmtree(work)
    if tally.short:
        logger.warning(
            "%d of %d rows have too few distinct variants; %d rows were written instead of %d",
            tally.short,
            tally.rows_in,
            tally.rows_out,
            tally.rows_in * settings.multiplication_factor,
        )
    return AugmentReport(output, tally, chosen, time.monotonic() - began, resumed)


def make_statistics(
    squad_path: str | Path,
    output_path: str | Path,
    *,
    tagger: str = "auto",
    num_processes: int = 1,
    on_bad_example: str = "error",
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> None:
    """Count how often each word of a file bears each tag, once for all shards of a job.

    Args:
        squad_path: as for `augment_squad`.
        output_path: where the counts go, as JSON.
        tagger: as for `augment_squad`; the shards use the same.
        num_processes: as for `augment_squad`.
        on_bad_example: as for `augment_squad`.
        overwrite: as for `augment_squad`.
        on_progress: as for `augment_squad`.
    """
    source, output = Path(squad_path).expanduser(), Path(output_path).expanduser()
    _require_source(source)
    _require_output(output, source, overwrite)
    chosen = choose_tagger(tagger)
    work = output.with_name(f".{output.name}.work")
    job = Job(source, AugmentSettings(tagger=tagger), chosen, work, (1, 1), on_bad_example)
    with blaming(output.parent):
        job.begin(None)
        try:
            with Processes(job, num_processes) as processes:
                counts = job.read(processes, on_progress or _silent)
        except DataError:
            shutil.rmtree(work)
            raise
        write_json(output, {"tagger": chosen, "input": file_hash(source), "counts": counts.as_json()})
        shutil.rmtree(work)


def _read_statistics(path: Path, source: Path, settings: AugmentSettings) -> tuple[TagCounts, str]:
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make it with --statistics_only") from error
    if not isinstance(content, dict) or not isinstance(content.get("tagger"), str):
        raise DataError(f"{path}: not a statistics file; make it with --statistics_only")
    if content.get("input") != file_hash(source):
        raise DataError(f"{path}: these are the statistics of another file than {source}; make them anew")
    if settings.tagger not in ("auto", content["tagger"]):
        raise DistilError(
            f"{path} was made with the tagger {content['tagger']!r}, not with {settings.tagger!r}: leave the tagger to "
            "the statistics, or make them anew"
        )
    return TagCounts.from_json(content.get("counts"), str(path)), content["tagger"]


def _require_source(source: Path) -> None:
    if not source.is_file():
        what = "is a directory: give the SQuAD-format file in it" if source.is_dir() else "no such file"
        raise DataError(f"{source}: {what}")


def _require_output(output: Path, source: Path, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise DistilError(f"the directory {output.parent} does not exist: make it, or choose another output_path")
    if output.exists():
        if output.samefile(source):
            raise DistilError(f"{output} is the input: choose another output_path")
        if output.is_dir() or not overwrite:
            raise DistilError(f"{output} exists: choose another output_path, or pass overwrite to replace a file")


def _silent(stage: str, rows: int, total: int | None) -> None:
    """Nobody is watching."""


# --- the script ------------------------------------------------------------------------------------------------------

_app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _option(text: str, name: str, **more: Any) -> Any:
    return typer.Option(f"--{name}", help=escape(text), **more)


_WHAT, _HOW, _RUN, _MORE = "What is edited", "How", "Running", "Several machines"
_S = AugmentSettings


@_app.command()
def _script(
    squad_path: Annotated[Path | None, _option("SQuAD-format JSON, plain or .gz", "squad_path")] = None,
    output_path: Annotated[Path | None, _option("where to write, packed when it ends in .gz", "output_path")] = None,
    multiplication_factor: Annotated[
        int, _option("versions of each row, the original included", "multiplication_factor")
    ] = _S.multiplication_factor,
    augment: Annotated[
        str, _option("question, context or both (in turn: one, the other, both)", "augment", rich_help_panel=_WHAT)
    ] = _S.augment,
    context_ngrams: Annotated[
        bool,
        _option(
            "sample n-grams of contexts too; a row whose answers are cut off is marked unlabelled",
            "context_ngrams",
            rich_help_panel=_WHAT,
        ),
    ] = _S.context_ngrams,
    drop_labels: Annotated[
        bool, _option("leave all answers out: for distillation only", "drop_labels", rich_help_panel=_WHAT)
    ] = _S.drop_labels,
    p_mask: Annotated[
        float, _option("probability that a word becomes the mask token", "p_mask", rich_help_panel=_HOW)
    ] = _S.p_mask,
    p_pos: Annotated[
        float, _option("probability that a word becomes another of its part of speech", "p_pos", rich_help_panel=_HOW)
    ] = _S.p_pos,
    p_ng: Annotated[
        float, _option("probability that a text is cut to a random n-gram", "p_ng", rich_help_panel=_HOW)
    ] = _S.p_ng,
    longest_ngram: Annotated[
        int, _option("n is uniform from 1 to this", "longest_ngram", rich_help_panel=_HOW)
    ] = _S.longest_ngram,
    mask_token: Annotated[
        str | None,
        _option("the student's; that of --tokenizer by default, else [MASK]", "mask_token", rich_help_panel=_HOW),
    ] = None,
    tokenizer: Annotated[
        str | None,
        _option(
            "directory or hub name: tells the mask token and, with --tagger none, the words",
            "tokenizer",
            rich_help_panel=_HOW,
        ),
    ] = None,
    tagger: Annotated[
        str,
        _option("auto, nltk, textblob, or none (no replacement by part of speech)", "tagger", rich_help_panel=_HOW),
    ] = _S.tagger,
    model: Annotated[
        str | None,
        _option("masked language model for contextual replacement (TinyBERT's)", "model", rich_help_panel=_HOW),
    ] = None,
    replace_probability: Annotated[
        float, _option("probability that --model replaces a word", "replace_probability", rich_help_panel=_HOW)
    ] = _S.replace_probability,
    word_possibilities: Annotated[
        int, _option("candidates of --model for a word", "word_possibilities", rich_help_panel=_HOW)
    ] = _S.word_possibilities,
    glove_path: Annotated[
        Path | None,
        _option("GloVe vectors for words of several pieces; else the model's own", "glove_path", rich_help_panel=_HOW),
    ] = None,
    device: Annotated[str, _option("where --model runs", "device", rich_help_panel=_HOW)] = _S.device,
    batch_size: Annotated[
        int, _option("texts a forward pass of --model", "batch_size", rich_help_panel=_HOW)
    ] = _S.batch_size,
    seed: Annotated[int, _option("of all random numbers", "seed", rich_help_panel=_HOW)] = _S.seed,
    num_processes: Annotated[int, _option("processes", "num_processes", rich_help_panel=_RUN)] = 1,
    overwrite: Annotated[bool, _option("replace an output that exists", "overwrite", rich_help_panel=_RUN)] = False,
    on_bad_example: Annotated[
        str, _option("error, or skip: drop and count bad questions", "on_bad_example", rich_help_panel=_RUN)
    ] = "error",
    provenance: Annotated[
        bool, _option("say in each row what was done to it", "provenance", rich_help_panel=_RUN)
    ] = _S.provenance,
    preview_rows: Annotated[
        int, _option("print so many rows beside variants of them, and write nothing", "preview", rich_help_panel=_RUN)
    ] = 0,
    shard: Annotated[
        str | None, _option("i/n: only every n-th article; needs --statistics", "shard", rich_help_panel=_MORE)
    ] = None,
    statistics: Annotated[
        Path | None,
        _option("counts of words by tag, made once with --statistics_only", "statistics", rich_help_panel=_MORE),
    ] = None,
    statistics_only: Annotated[
        bool, _option("write these counts to --output_path and stop", "statistics_only", rich_help_panel=_MORE)
    ] = False,
    merge: Annotated[
        list[Path] | None,
        _option("join shards to --output_path; once for each shard", "merge", rich_help_panel=_MORE),
    ] = None,
) -> None:
    """Multiply a SQuAD-format file by masking, POS-guided replacement and n-gram sampling; answers stay true.

    The methods are those of Tang et al. 2019 and, with --model, of TinyBERT. Interrupted, the same command goes on.
    """
    given = locals()
    console = Console(stderr=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    try:
        _run(given, console)
    except DistilError as error:
        console.print(f"[bold red]Error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        console.print("[yellow]Interrupted.[/] The same command goes on from here.")
        raise typer.Exit(130) from error


def _run(given: dict[str, Any], console: Console) -> None:
    output, merge, rows = given["output_path"], given.pop("merge"), given.pop("preview_rows")
    only = given.pop("statistics_only")
    if output is None and not rows:
        raise DistilError("--output_path is missing: where shall it go?")
    if merge:
        _require_output(output, merge[0], given["overwrite"])
        with blaming(output.parent):
            merge_shards(merge, output)
        return
    if given["squad_path"] is None:
        raise DistilError("--squad_path is missing: which file shall be multiplied?")
    if rows:
        names = {field.name for field in fields(AugmentSettings)}
        settings = AugmentSettings(**{name: value for name, value in given.items() if name in names})
        preview(given["squad_path"], settings, rows, Console())
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        watch = _Bars(bars)
        if only:
            names = {"squad_path", "output_path", "tagger", "num_processes", "on_bad_example", "overwrite"}
            make_statistics(**{name: given[name] for name in names}, on_progress=watch)
            return
        report = augment_squad(**given, on_progress=watch)
    Console().print(summary(report.output, report.tally, report.tagger, report.seconds, given["multiplication_factor"]))


class _Bars:
    """A progress bar for each stage, with rows a second."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, tuple[Any, float]] = {}

    def __call__(self, stage: str, rows: int, total: int | None) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, rate=""), time.monotonic()
        task, began = self._tasks[stage]
        self._bars.advance(task, rows)
        done = self._bars.tasks[self._bars.task_ids.index(task)].completed
        self._bars.update(task, rate=f"{done / max(time.monotonic() - began, 1e-3):,.0f} rows/s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script on `arguments` (those of the command line by default) and exit."""
    _app(args=arguments, prog_name="python -m augment.augment_squad")


if __name__ == "__main__":
    main()
