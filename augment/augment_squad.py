"""Multiply a SQuAD-format file, as a function and as a script.

python -m augment.augment_squad --squad_path train.json --output_path augmented.json --multiplication_factor 20
"""

import inspect
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from augment.augmenter import mask_token_of
from augment.job import BadInput, Job, OnProgress, alone, blaming
from augment.lexicon import TagCounts
from augment.processes import Processes
from augment.report import AugmentReport
from augment.settings import AugmentSettings
from augment.shards import merge_shards, parse_shard, require_readable
from augment.show import preview, summary
from augment.tagging import choose_tagger
from haystack_distill.errors import DataError, DistilError, WriteError
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.console import faults_in_words, never_lose_a_result
from haystack_distill.utils.files import expand_user, is_stream, require_writable, temporary_directory
from haystack_distill.utils.hashing import hash_file

logger = logging.getLogger(__name__)


def augment_squad(
    squad_path: str | Path,
    output_path: str | Path,
    glove_path: str | Path | None = None,
    model: str | Path | None = None,
    tokenizer: str | Path | None = None,
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
    `-aug2`, ... behind them. Keys that are not SQuAD's (and `plausible_answers`) are left out. The output is whole or
    not there; a run that was interrupted left a hidden directory beside it, with which the same call goes on. The
    output depends on the input, the settings and the tagger alone.

    The first ten parameters are those of Haystack 1's function of this name, but that `model` is None by default (no
    contextual replacement) and that `tokenizer` only tells the mask token and, without a tagger, what a word is.

    Args:
        squad_path: SQuAD-format JSON, plain or gzip, or a table that `data.squad.load.read_squad` reads.
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
        on_bad_example: "error" or "skip", as for `haystack_distill.data.squad.load.read_squad`.
        overwrite: replace an output that is there.
        shard: "i/n", to make only every n-th article; needs `statistics`. See `shards.merge_shards`.
        statistics: how often words bear tags, as `make_statistics` writes it; counted in `squad_path` by default.
        on_progress: called with the stage ("reading" or "augmenting"), rows done, and rows in all where that is known.

    Raises:
        DataError: the input is not valid SQuAD data, or its ids are already those of an augmented file.
        DistilError: a value that cannot be, an output that cannot be written, or a tagger that is not here.
    """
    given = locals()
    named: dict[str, Any] = {
        name: None if given[name] is None else str(given[name]) for name in ("glove_path", "model", "tokenizer")
    }
    rest = {field.name: given[field.name] for field in fields(AugmentSettings) if field.name not in named}
    settings = AugmentSettings(**named, **rest | {"device": str(device)})
    began = time.monotonic()
    source, output = _checked(squad_path, output_path, overwrite, num_processes, on_bad_example)
    if shard is not None and statistics is None:
        raise DistilError(
            "a shard needs the statistics of the whole file, or its words would be drawn from its own articles alone: "
            "make them once (--statistics_only, or make_statistics) and pass them to every shard"
        )
    counts, told = (None, settings.tagger) if statistics is None else _read_statistics(statistics, source, settings)
    settings = replace(settings, tagger=choose_tagger(told))
    mask_token_of(settings)  # a tokenizer that is not there is better known before the work than in it
    part = parse_shard(shard) if shard else None
    with _job_at(output, source, settings, part, on_bad_example, counts) as (job, resumed):
        with Processes(num_processes, settings, job.work) as processes:
            found = job.read(processes, on_progress or _silent)
            tally = job.write(found, processes, on_progress or _silent)
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
    source, output = _checked(squad_path, output_path, overwrite, num_processes, on_bad_example)
    settings = AugmentSettings(tagger=choose_tagger(tagger))
    with _job_at(output, source, settings, None, on_bad_example, None) as (job, _):
        with Processes(num_processes, settings, job.work) as processes:
            counts = job.read(processes, on_progress or _silent)
        content = {"tagger": settings.tagger, "input": hash_file(source), "counts": counts.as_json()}
        write_json(output, content)


@contextmanager
def _job_at(
    output: Path,
    source: Path,
    settings: AugmentSettings,
    shard: tuple[int, int] | None,
    on_bad_example: str,
    statistics: TagCounts | None,
) -> Iterator[tuple[Job, bool]]:
    """A job that works beside its output, and whether it goes on with an interrupted one.

    Its working directory goes when the job is done, and when there is nothing in it worth going on with. Where the
    output is a device or a pipe, it is a temporary one.
    """
    with ExitStack() as stack:
        beside = Path(stack.enter_context(temporary_directory())) / output.name if is_stream(output) else output
        work = beside.with_name(f".{output.name}.work")
        job = Job(source, settings, work, shard, on_bad_example, statistics)
        stack.enter_context(blaming(work))
        stack.enter_context(alone(work))
        resumed = job.begin()
        try:
            yield job, resumed
        except BadInput as bad:
            shutil.rmtree(work)
            raise bad.error from None
        except WriteError:
            raise  # what is done is kept: there is only room missing
        except DistilError:
            if not resumed:
                shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def _read_statistics(given: str | Path, source: Path, settings: AugmentSettings) -> tuple[TagCounts, str]:
    path = expand_user(given)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make it with --statistics_only") from error
    if not isinstance(content, dict) or not isinstance(content.get("tagger"), str):
        raise DataError(f"{path}: not a statistics file; make it with --statistics_only")
    if content.get("input") != hash_file(source):
        raise DataError(f"{path}: these are the statistics of another file than {source}; make them anew")
    if settings.tagger not in ("auto", content["tagger"]):
        raise DistilError(
            f"{path} was made with the tagger {content['tagger']!r}, not with {settings.tagger!r}: leave the tagger to "
            "the statistics, or make them anew"
        )
    return TagCounts.from_json(content.get("counts"), str(path)), content["tagger"]


def _checked(
    squad_path: str | Path, output_path: str | Path, overwrite: bool, num_processes: int, on_bad_example: str
) -> tuple[Path, Path]:
    """Input and output as paths, links followed, after what can be known to be wrong before the work begins."""
    source, output = expand_user(squad_path), expand_user(output_path)
    require_readable(source)
    _require_output(output, [source], overwrite)
    if output.is_symlink() and not is_stream(output):  # else it would be replaced by the file
        output = Path(os.path.realpath(output))
    if num_processes < 1:
        raise DistilError(f"num_processes must be at least 1, not {num_processes}")
    if on_bad_example not in ("error", "skip"):
        raise DistilError(f'on_bad_example must be "error" or "skip", not {on_bad_example!r}')
    return source, output


def _require_output(output: Path, sources: Sequence[Path], overwrite: bool) -> None:
    if is_stream(output):
        return
    try:
        if not output.parent.is_dir():
            raise DistilError(f"the directory {output.parent} does not exist: make it, or choose another output_path")
        if not output.exists():
            require_writable(output, directory=False)
            return
        if any(output.samefile(source) for source in sources):
            raise DistilError(f"{output} is the input: choose another output_path")
        if output.is_dir() or not overwrite:
            raise DistilError(f"{output} exists: choose another output_path, or pass overwrite to replace a file")
        require_writable(output, directory=False)
    except OSError as error:
        raise DistilError(
            f"{output}: cannot be written ({error.strerror or error}): choose another output_path"
        ) from error


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
    squad_path: Annotated[Path | None, _option("SQuAD-format JSON, plain or .gz, or a table", "squad_path")] = None,
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
        _option(
            "GloVe, fastText or word2vec (.vec) vectors for words of several pieces; else the model's own",
            "glove_path",
            rich_help_panel=_HOW,
        ),
    ] = None,
    device: Annotated[str, _option("where --model runs", "device", rich_help_panel=_HOW)] = _S.device,
    batch_size: Annotated[
        int,
        _option("sequences a forward pass of --model; a text takes about seven", "batch_size", rich_help_panel=_HOW),
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
        int,
        _option(
            "print so many rows beside variants of them, and write nothing", "preview", min=0, rich_help_panel=_RUN
        ),
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
    never_lose_a_result()
    try:
        with faults_in_words():
            _run(given, console)
    except KeyboardInterrupt as error:
        console.print("[yellow]Interrupted.[/] The same command goes on from here.")
        raise typer.Exit(130) from error


def _run(given: dict[str, Any], console: Console) -> None:
    # The shell leaves the ~ of --output_path=~/file as it is.
    given = {name: expand_user(value) if isinstance(value, Path) else value for name, value in given.items()}
    modes = {"merge": [expand_user(path) for path in given.pop("merge") or []], "preview": given.pop("preview_rows")}
    modes["statistics_only"] = given.pop("statistics_only")
    chosen = [name for name, value in modes.items() if value]
    if len(chosen) > 1:
        raise DistilError(f"--{' and --'.join(chosen)} do not go together")
    mode = chosen[0] if chosen else "multiply"
    _require_used(given, mode)
    if mode != "preview" and given["output_path"] is None:
        raise DistilError("--output_path is missing: where shall it go?")
    if mode != "merge" and given["squad_path"] is None:
        raise DistilError("--squad_path is missing: which file shall be multiplied?")
    if mode == "merge":
        _merge(modes["merge"], given["output_path"], given["overwrite"])
        return
    if mode == "preview":
        names = {field.name for field in fields(AugmentSettings)}
        told: dict[str, Any] = {name: given[name] for name in names if name in given}
        if told["glove_path"] is not None:
            told["glove_path"] = str(told["glove_path"])
        settings = AugmentSettings(**told)
        require_readable(given["squad_path"])
        preview(given["squad_path"], settings, modes["preview"], Console(), skip=given["on_bad_example"] == "skip")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        watch = _Bars(bars)
        if mode == "statistics_only":
            make_statistics(**{name: given[name] for name in _USED[mode]}, on_progress=watch)
            return
        report = augment_squad(**given, on_progress=watch)
    Console().print(summary(report, given["multiplication_factor"]))


# Which options each way of using the script takes; others would be accepted and ignored.
_USED = {
    "merge": {"output_path", "overwrite"},
    "statistics_only": {"squad_path", "output_path", "tagger", "num_processes", "on_bad_example", "overwrite"},
    "preview": {field.name for field in fields(AugmentSettings)} | {"squad_path", "on_bad_example"},
}


def _require_used(given: dict[str, Any], mode: str) -> None:
    if mode == "multiply":
        return
    defaults = {name: parameter.default for name, parameter in inspect.signature(_script).parameters.items()}
    extra = [name for name, value in given.items() if name not in _USED[mode] and value != defaults[name]]
    if extra:
        raise DistilError(f"--{', --'.join(extra)} mean nothing with --{mode}: leave them out")


def _merge(shards: list[Path], output: Path, overwrite: bool) -> None:
    for path in shards:
        require_readable(path)
    _require_output(output, shards, overwrite)
    merge_shards(shards, output)


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
