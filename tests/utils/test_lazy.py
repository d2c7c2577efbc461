"""Lazy names: imported at their first use."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import haystack_distill
from haystack_distill import objectives, students, teachers
from haystack_distill.utils.lazy import lazy_names, when_imported


@pytest.mark.parametrize(
    "package", [haystack_distill, students, objectives, teachers], ids=lambda package: package.__name__
)
def test_every_public_name_is_there(package) -> None:
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        getattr(package, "nothing")  # noqa: B009


def test_nothing_is_imported_before_its_first_use() -> None:
    code = "import sys; from haystack_distill import students, objectives, teachers; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "False"


def test_a_name_is_looked_up_in_its_module() -> None:
    get = lazy_names("mine", {"sqrt": "math"})
    assert get("sqrt")(9) == 3


def test_a_function_is_called_once_a_module_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_later.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    finders, seen = list(sys.meta_path), []
    when_imported("imported_later", lambda: seen.append(sys.modules["imported_later"].value))
    when_imported("imported_later", lambda: seen.append("second"))
    assert seen == []
    importlib.import_module("imported_later")
    assert sorted(map(str, seen)) == ["1", "second"]
    assert sys.meta_path == finders
    when_imported("imported_later", lambda: seen.append("at once"))
    assert seen[2:] == ["at once"]
    monkeypatch.delitem(sys.modules, "imported_later")
    when_imported("never_there", lambda: seen.append("never"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("never_there")
    assert len(seen) == 3
