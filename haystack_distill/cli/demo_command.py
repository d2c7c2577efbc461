"""The command `demo`."""

import contextlib
from pathlib import Path

from haystack_distill.cli.options import option, with_options
from haystack_distill.cli.output import logs_on_stderr, print_result
from haystack_distill.cli.shared import JSON
from haystack_distill.errors import DistilError

_OPTIONS = [
    option(
        "haystack",
        int | None,
        None,
        "Whose pipeline answers at the end: 1 (farm-haystack) or 3 (haystack-ai). Default: the one that is installed.",
    ),
    option("seed", int, 42, "Seed of the training runs."),
    option(
        "output_dir",
        Path | None,
        None,
        "Where the distilled reader goes. Default: demo-reader.",
        metavar="DIRECTORY",
    ),
]


@with_options(_OPTIONS, [JSON])
def demo(haystack: int | None, seed: int, output_dir: Path | None, json: bool) -> None:
    """See it work: distil the embedded teacher on the sample data that comes with this package.

    \b
    Example:
      haystack-distill demo
    """
    if haystack not in (None, 1, 3):
        raise DistilError(f"--haystack is 1 (farm-haystack) or 3 (haystack-ai), not {haystack}")
    with logs_on_stderr() if json else contextlib.nullcontext():
        from haystack_distill.cli.demo import run_demo

        result = run_demo(haystack=haystack, seed=seed, output_dir=output_dir, json=json)
    if json:
        print_result(True, result)
