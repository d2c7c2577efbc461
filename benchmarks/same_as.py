"""Does this tree compute what an older commit computes, to the bit?

    python benchmarks/same_as.py 885ebbc [--expect NAME] [--case NAME]

The older commit is checked out into a work tree of its own for the time of the comparison. `same_as_arm.py` of this
tree runs for both, in this interpreter: training runs of every kind, a recipe, resumed runs, answers, components,
augmented files. Run it in both environments. A case that is to differ by design is named by `--expect`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environments import ROOT, tree_of
from rich.console import Console
from rich.table import Table

ARM = Path(__file__).with_name("same_as_arm.py")
LISTED = 3  # differing quantities of a case
Cases = dict[str, dict[str, Any]]


def started(tree: Path, scratch: Path, cases: list[str]) -> subprocess.Popen[bytes]:
    """The arm at work on a tree, with nothing left from a run before, and one thread: sums have one order."""
    (scratch / "tmp").mkdir(parents=True)
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(scratch / "tmp"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "HAYSTACK_DISTILL_AUTO_PRECISION": "fp32",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    chosen = [word for name in cases for word in ("--case", name)]
    with (scratch / "log").open("wb") as log:
        command = [sys.executable, str(ARM), "--output", str(scratch / "results.json"), *chosen]
        return subprocess.Popen(command, cwd=scratch, env=environment, stdout=log, stderr=log)


def results(tree: Path, scratch: Path, arm: "subprocess.Popen[bytes]") -> Cases:
    """What an arm computed, after a check that it ran the tree that was meant."""
    if arm.wait():
        sys.exit(f"{(scratch / 'log').read_text(errors='replace')}\nthe arm failed in {tree}")
    found = json.loads((scratch / "results.json").read_text(encoding="utf-8"))
    if Path(found["tree"]) != tree.resolve():
        sys.exit(f"{found['tree']} was imported, not {tree}: is there another haystack_distill on the path?")
    for name, quantities in found["cases"].items():
        if "error" in quantities:  # the traceback
            print(f"{name} failed in {tree}:\n{(scratch / 'log').read_text(errors='replace')}", file=sys.stderr)
            break
    return found["cases"]


def computed(old: Path, new: Path, scratch: Path, cases: list[str]) -> tuple[Cases, Cases]:
    """What both trees compute, side by side."""
    places = scratch / "of-old", scratch / "of-new"
    arms = [started(tree, place, cases) for tree, place in zip((old, new), places, strict=True)]
    try:
        return results(old, places[0], arms[0]), results(new, places[1], arms[1])
    finally:
        for arm in arms:
            if arm.poll() is None:
                arm.kill()
                arm.wait()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The quantities of a case that are not the same, with both values."""
    absent = object()
    names = [name for name in old | new if old.get(name, absent) != new.get(name, absent)]
    return [f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in names]


def compare(old: Cases, new: Cases, expected: list[str]) -> bool:
    """Print a table of the cases; whether all is as it should be."""
    table = Table("case", "quantities", "", "differing: old -> new")
    right = True
    for name in old | new:
        found = differences(old.get(name, {}), new.get(name, {}))
        failed = "error" in old.get(name, {}) or "error" in new.get(name, {})
        right &= not failed and (not found or name in expected)
        verdict = "FAILED" if failed else "DIFFERENT" if found else "same"
        if not failed and name in expected:
            verdict = "different, as expected" if found else "same, EXPECTED TO DIFFER"
        more = [f"... and {len(found) - LISTED} more"] if len(found) > LISTED else []
        errors = [f"error: {side[name]['error']}" for side in (old, new) if "error" in side.get(name, {})]
        table.add_row(name, str(len(old.get(name, {}))), verdict, "\n".join(errors or [*found[:LISTED], *more]))
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    return right


def main() -> None:
    """Compare; exit with 1 where something differs that is not expected to, or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="the commit to compare with")
    parser.add_argument(
        "--expect", action="append", default=[], metavar="NAME", help="a case that is to differ; repeat"
    )
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this case; repeat for more")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, tree_of(options.old) as old:
        found = computed(old, ROOT, Path(scratch), options.case)
    unknown = sorted(set(options.expect) - set(found[0]))
    if unknown:
        print(f"expected to differ, but not run here: {', '.join(unknown)}", file=sys.stderr)
    sys.exit(0 if compare(*found, options.expect) else 1)


if __name__ == "__main__":
    main()
