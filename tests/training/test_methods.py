"""The registry of methods: names, and options that are read without torch."""

import subprocess
import sys

import pytest

from haystack_distill.errors import DistilError
from haystack_distill.objectives import IntermediateLayers, Labels, Method, PredictionLayer
from haystack_distill.training.methods import METHODS
from haystack_distill.utils.options import options_of


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_a_title_and_help_for_every_option(name: str) -> None:
    method = METHODS[name]
    assert issubclass(method, Method)
    assert METHODS.title(name)
    assert METHODS.name_of(method()) == name
    assert all(option.help for option in METHODS.options(name))
    for constant in ("needs_teacher", "needs_corpus"):
        assert METHODS.constant(name, constant) in (None, getattr(method, constant))
    assert (METHODS.constant(name, "needs_teacher") is not False) == method.needs_teacher


@pytest.mark.parametrize("name", METHODS)
def test_options_without_importing_are_those_of_the_dataclass(name: str) -> None:
    read, imported = METHODS.options(name), options_of(METHODS[name])
    assert [(one.name, one.default, one.help) for one in read] == [
        (one.name, one.default, one.help) for one in imported
    ]


def test_options_are_read_without_torch() -> None:
    code = (
        "import sys; from haystack_distill.training.methods import METHODS; "
        "print(*[option.name for name in METHODS for option in METHODS.options(name)], 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "layer_mapping" in shown
    assert shown[-1] == "False"


def test_an_unknown_method() -> None:
    for ask in (METHODS.__getitem__, METHODS.options):
        with pytest.raises(DistilError, match="unknown method 'prediction-layers'; did you mean 'prediction_layer'"):
            ask("prediction-layers")
    assert "prediction-layers" not in METHODS
    assert "labels" in METHODS


def test_a_method_that_is_not_registered_is_called_by_its_class() -> None:
    class Mine(Labels):
        pass

    assert METHODS.name_of(Mine()).endswith("Mine")
    assert METHODS.name_of(PredictionLayer()) == "prediction_layer"
    assert METHODS.name_of(IntermediateLayers()) == "intermediate_layers"
