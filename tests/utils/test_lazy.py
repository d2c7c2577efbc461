"""Lazy names: imported at their first use."""

import subprocess
import sys

import pytest

import haystack_distill
from haystack_distill import objectives, students, teachers
from haystack_distill.utils.lazy import lazy_names


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
