"""What this tree computes is what it computed when tests/pinned_results.json was written, within 1e-5.

The numbers are the same in both environments. Where a change is meant to move them, write them anew, in both:

    python benchmarks/same_as_arm.py --pin [--case NAME]

Whether two trees agree to the bit, on one machine, is what benchmarks/same_as.py says.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ARM = Path(__file__).parents[1] / "benchmarks" / "same_as_arm.py"
TOLERANCE = 1e-5
SLOW = {"recipe"}


def load_arm() -> ModuleType:
    """The script that has the cases; it is not part of the package."""
    spec = importlib.util.spec_from_file_location("same_as_arm", ARM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


arm = load_arm()
PINNED = json.loads(arm.PINNED_RESULTS.read_text(encoding="utf-8"))
NAMES = [name for name, case in arm.CASES.items() if case.pinned]


def test_every_case_is_pinned() -> None:
    assert list(PINNED) == NAMES


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
)
def test_results_are_as_pinned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not arm.can_run(name):
        pytest.skip(f"{arm.CASES[name].needs} is not in this environment")
    monkeypatch.setenv("HAYSTACK_DISTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    found = arm.flat(arm.pinned(arm.run_case(name, tmp_path / "work")))
    expected = PINNED[name]
    numbers = {key for key, value in expected.items() if isinstance(value, float)}
    assert found.keys() == expected.keys()
    assert {key: found[key] for key in found.keys() - numbers} == {key: expected[key] for key in found.keys() - numbers}
    near = pytest.approx({key: expected[key] for key in numbers}, rel=TOLERANCE, abs=TOLERANCE)
    assert {key: found[key] for key in numbers} == near
