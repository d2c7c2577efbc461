"""The options that several groups of commands share."""

from pathlib import Path

from haystack_distill.cli.options import REQUIRED, one_of, option, option_from
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.models.backends.exported import BACKENDS
from haystack_distill.utils.checks import Precision
from haystack_distill.utils.options import options_of, read_keywords

EMBEDDED = "embedded"
_READER = f"A directory, a name on the Hugging Face hub, or '{EMBEDDED}', the small teacher of this package."
READER_METAVAR = f"NAME|DIRECTORY|{EMBEDDED}"
_FILES = (
    "SQuAD-format JSON or a table (CSV, JSON lines, Parquet); give the option again for more files. Or the name of a "
    "data set on the hub: its"
)

MODEL = option("model", str, REQUIRED, _READER, metavar=READER_METAVAR)
TEACHER = option("teacher", str, REQUIRED, f"The reader to learn from. {_READER}", metavar=READER_METAVAR)
DATA = option("data", list[str], REQUIRED, f"{_FILES} train split is taken.", metavar="FILE|NAME")
TEST_DATA = option("data", list[str], REQUIRED, f"{_FILES} validation split is taken.", metavar="FILE|NAME")
BAD_EXAMPLES = option(
    "on_bad_example",
    str,
    "error",
    "What to do with a question that is not valid SQuAD data: stop, or skip it and log how many there were.",
    "Data",
    **one_of("error", "skip"),
)
CACHE = option(
    "cache_dir",
    Path | None,
    None,
    "Where token windows and teacher outputs are kept. Default: $HAYSTACK_DISTILL_CACHE or ~/.cache/haystack-distill.",
    "Run",
    metavar="DIRECTORY",
)
JSON = option("json", bool, False, "Print one JSON object on stdout instead of a table.", "Run", flags="--json")
OVERWRITE = option(
    "overwrite",
    bool,
    False,
    "Write into a directory that is not empty; files of other names stay.",
    "Run",
    flags="--overwrite",
)

_WINDOWS = [option_from(source, "Reading") for source in options_of(WindowSettings)]
# The reader's module imports torch, so its options are read from the source.
_READER_OPTIONS = {source.name: source for source in read_keywords("haystack_distill.models.reader", "Reader")}
_LOADING = {source.name: source for source in read_keywords("haystack_distill.models.reader", "Reader.load")}
_DECODING = [option_from(_READER_OPTIONS[name], "Reading") for name in ("max_answer_length", "no_answer_threshold")]
_DEVICE = option_from(_READER_OPTIONS["device"], "Reading", type=str)
READING = [*_WINDOWS, *_DECODING, _DEVICE]
BATCHES = [*READING, option_from(_READER_OPTIONS["batch_size"], "Reading")]
INFERENCE = [
    *BATCHES,
    option_from(_READER_OPTIONS["precision"], "Reading", type=Precision),
]
# Where time is measured, a threshold has nothing to act on.
TIMED = [parameter for parameter in INFERENCE if parameter.name != "no_answer_threshold"]
SPEED = option_from(_READER_OPTIONS["speed"], "Reading")
RUNNING = [
    option(
        "backend",
        str,
        _LOADING["backend"].default,
        _LOADING["backend"].help,
        "Reading",
        **one_of(*BACKENDS),
    ),
    option_from(_LOADING["num_threads"], "Reading"),
]
