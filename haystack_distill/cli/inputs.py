"""The values of a command's options, turned into what the library takes: readers, examples, settings."""

import json as json_module
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haystack_distill.errors import DistilError
from haystack_distill.utils.files import expand_user, require_writable

if TYPE_CHECKING:
    import datasets

    from haystack_distill.models.reader import Reader


def load_reader(name: str, **settings: Any) -> "Reader":
    """A reader by directory, hub name or the word "embedded"."""
    from haystack_distill.models.embedded_teacher import named_reader
    from haystack_distill.utils.devices import require_device

    require_device(settings["device"])
    return named_reader(name, **settings)


def load_teacher(name: str, settings: dict[str, Any]) -> "Reader":
    """A teacher by directory, hub name or the word "embedded"; see `models.embedded_teacher.named_teacher`."""
    from haystack_distill.models.embedded_teacher import named_teacher
    from haystack_distill.utils.devices import require_device

    require_device(settings["device"])
    return named_teacher(name, **settings)


def reader_settings(given: dict[str, Any], passages: int | None = None) -> dict[str, Any]:
    """The constructor's settings of `Reader` from a command's options.

    Args:
        given: The options.
        passages: With backend "auto": passages that the command reads at once.
    """
    from haystack_distill.data.window_settings import WindowSettings

    window_settings = WindowSettings(given["max_seq_len"], given["doc_stride"], given["max_query_length"])
    names = ("max_answer_length", "no_answer_threshold", "batch_size", "precision", "device")
    running: dict[str, Any] = {name: given[name] for name in ("backend", "num_threads", "speed") if name in given}
    if passages is not None and running["backend"] == "auto":
        running["passages"] = passages
    return {"window_settings": window_settings} | {name: given[name] for name in names if name in given} | running


def examples_of(data: Sequence[str], split: str, given: dict[str, Any]) -> "datasets.Dataset":
    """Examples from files or a data set on the hub, read as a command's options have it."""
    from haystack_distill.data.squad.load import load_examples

    source = data[0] if len(data) == 1 else list(data)
    return load_examples(source, split=split, on_bad_example=given["on_bad_example"], cache_dir=given["cache_dir"])


def is_squad(source: str) -> bool:
    """Whether a source of text has questions, by its name."""
    return source.endswith((".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz"))


def corpus_texts(source: str, given: dict[str, Any]) -> Iterator[str]:
    """The texts of a file with questions, or of a corpus (including JSON lines and Parquet)."""
    if is_squad(source):
        from haystack_distill.students.tokenizer import corpus_of

        yield from corpus_of(examples_of([source], "train", given))
        return
    from haystack_distill.data.corpus import Corpus

    for texts, _ in Corpus(source, text_column=given["text_column"]).read():
        yield from texts


def measured_examples(data: Sequence[str], given: dict[str, Any]) -> "datasets.Dataset":
    """Examples to measure on, checked before anything is loaded for it."""
    from haystack_distill.data.squad.metrics import require_measurable

    examples = examples_of(data, "validation", given)
    require_measurable(examples)
    return examples


def refuse_to_overwrite(output_dir: Path, teachers: Sequence[str], overwrite: bool) -> None:
    """Check that an output directory can be written to, is no teacher's, and without `overwrite` is empty.

    Raises:
        DistilError: It is not so.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise DistilError(f"{output_dir} is a file; choose another --output-dir")
    if output_dir.exists() and any(Path(name).exists() and output_dir.samefile(name) for name in teachers):
        raise DistilError(f"{output_dir} is the teacher, which must not be written over; choose another --output-dir")
    if not overwrite and output_dir.exists() and any(output_dir.iterdir()):
        raise DistilError(
            f"{output_dir} is not empty; choose another --output-dir, or add --overwrite to write into it"
        )
    require_writable(output_dir)


def named_values(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, with numbers, true, false and null as in JSON and all else as text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise DistilError(f"--shape {pair!r} has another form; write NAME=VALUE, like embedding_size=64")
        try:
            values[name] = json_module.loads(text)
        except json_module.JSONDecodeError:
            values[name] = text
    return values


def text_of(file: str) -> str:
    """The text of a UTF-8 file, or with "-" of stdin, its line ends as they are, without a byte order mark.

    Raises:
        DistilError: It cannot be read.
    """
    try:
        # Bytes, because text mode would make one character of \r\n, and offsets count those of the file.
        content = sys.stdin.buffer.read() if file == "-" else expand_user(file).read_bytes()
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DistilError(f"cannot read the context from {file}: {error}") from error
