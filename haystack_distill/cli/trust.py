"""The commands `calibrate` and `agree`: how far a reader can be trusted before it goes live."""

from pathlib import Path
from typing import Any

from haystack_distill.cli.inputs import load_reader, measured_examples, reader_settings, refuse_to_overwrite
from haystack_distill.cli.options import CONFIG, REQUIRED, option, option_from, with_options
from haystack_distill.cli.output import logs_on_stderr, print_result
from haystack_distill.cli.shared import BAD_EXAMPLES, CACHE, INFERENCE, JSON, MODEL, OVERWRITE
from haystack_distill.errors import DistilError
from haystack_distill.utils.files import require_writable
from haystack_distill.utils.model_files import TRAINED_RECORD
from haystack_distill.utils.options import read_keywords

_CALIBRATING = {source.name: source for source in read_keywords("haystack_distill.evaluation.calibration", "calibrate")}
_CALIBRATE = [
    option(
        "dev_data",
        list[str],
        REQUIRED,
        "Labelled questions on several articles that the reader was not trained on: SQuAD-format JSON or a table (CSV, "
        "JSON lines, Parquet), or a data set on the hub, whose validation split is taken. Can be repeated.",
        metavar="FILE|NAME",
    ),
    option("output_dir", Path | None, None, "The directory for the calibrated reader.", metavar="DIRECTORY"),
    option(
        "in_place",
        bool,
        False,
        "Replace the reader in its own directory. What was exported from it is removed.",
        flags="--in-place",
    ),
    *(option_from(_CALIBRATING[name]) for name in ("held_out", "seed", "threshold_for")),
    OVERWRITE,
]


@with_options([MODEL], _CALIBRATE, INFERENCE, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
def calibrate(model: str, dev_data: list[str], output_dir: Path | None, in_place: bool, **given: Any) -> None:
    """Make a reader's score the chance that its answer is right, and store its best no-answer threshold.

    One temperature is fitted on some articles of dev data, judged on the others and folded into the weights, so that
    every framework that loads the reader honours it. The answers stay. calibration.html has the reliability diagram.

    \b
    Examples:
      haystack-distill calibrate --model finished --dev-data dev.json \\
          --output-dir calibrated
      haystack-distill calibrate --model finished --dev-data dev-v2.0.json \\
          --threshold-for exact --in-place
    """
    target = _target(model, output_dir, in_place, given["overwrite"])
    with logs_on_stderr():
        from haystack_distill.evaluation import calibration
        from haystack_distill.reporting.calibration import add_to_card, summary_of, write_calibration
        from haystack_distill.reporting.model_card import CARD_FILE

        examples = measured_examples(dev_data, given)
        reader = load_reader(model, **reader_settings(given))
        result = calibration.calibrate(
            reader,
            examples,
            held_out=given["held_out"],
            seed=given["seed"],
            threshold_for=given["threshold_for"],
            cache_dir=given["cache_dir"],
        )
        card_file = Path(model) / CARD_FILE
        card = card_file.read_text(encoding="utf-8", errors="replace") if card_file.is_file() else None
        result.reader.save(target, only_trained=(Path(model) / TRAINED_RECORD).exists())
        if card is not None:
            add_to_card(target, result, card)
        page = write_calibration(target, result, model=Path(model).name, data=[Path(name).name for name in dev_data])
        summary = {"command": "calibrate", "model": model, "output_dir": target, "page": page} | summary_of(result)
    print_result(given["json"], summary, f"{model} calibrated, in {target}")


def _target(model: str, output_dir: Path | None, in_place: bool, overwrite: bool) -> Path:
    """Where a calibrated reader goes, checked.

    Raises:
        DistilError: It is not given or given twice, cannot be written to, or holds other things.
    """
    if in_place:
        if output_dir is not None:
            raise DistilError("--in-place and --output-dir are two places for one reader; give one of them")
        if overwrite:
            raise DistilError("--overwrite has no effect with --in-place, which replaces the reader; leave it out")
        if not Path(model).is_dir():
            raise DistilError(f"{model} is not a directory to write to; give --output-dir in place of --in-place")
        require_writable(Path(model))
        return Path(model)
    if output_dir is None:
        raise DistilError("there is no place for the calibrated reader; give --output-dir, or --in-place")
    if Path(model).exists() and output_dir.exists() and output_dir.samefile(model):
        raise DistilError(f"{output_dir} is the reader itself; add --in-place in place of --output-dir to replace it")
    refuse_to_overwrite(output_dir, [], overwrite)
    return output_dir
