"""The command `demo`."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cli.command_line import refusal, run, run_json


def test_demo_prints_one_object_whatever_it_says_on_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("haystack_distill.cli.demo")

    def run_demo(**given: Any) -> dict:
        print("on the way")
        return {"given": {name: str(value) for name, value in given.items()}, "ratio": float("nan")}

    module.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "haystack_distill.cli.demo", module)
    told = run_json("demo", "--haystack", "3", "--seed", "7", "--output-dir", tmp_path)
    assert told == {
        "given": {"haystack": "3", "seed": "7", "output_dir": str(tmp_path), "json": "True"},
        "ratio": None,
    }
    assert run("demo").stdout.strip() == "on the way"
    assert "--haystack is 1 (farm-haystack) or 3" in refusal("demo", "--haystack", "2")
