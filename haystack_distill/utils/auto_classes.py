"""This package's own architectures in transformers' auto classes, without importing transformers before it is needed.

The modules in `OWN` register their models with AutoConfig and AutoModelForQuestionAnswering when they are imported.
That takes torch, and some configurations of transformers import the auto classes while they are being imported
themselves. So the modules are imported when AutoConfig first reads a configuration, which every auto class begins with.
"""

import functools
import sys
from importlib import import_module
from typing import Any

from haystack_distill.utils.lazy import when_imported

OWN = ("haystack_distill.models.bilstm", "haystack_distill.models.early_exit")
_AUTO = "transformers.models.auto.configuration_auto"


def know_own_models() -> None:
    """Have transformers' auto classes know the models of this package, whichever of the two is imported first."""
    when_imported(_AUTO, lambda: _wait_for_first_use(sys.modules[_AUTO]))


def import_own_models() -> None:
    """Import the models of this package, which registers them with the auto classes."""
    for module in OWN:
        import_module(module)


def _wait_for_first_use(auto: Any) -> None:
    """Have AutoConfig import the own models before it reads a configuration for the first time."""
    original = auto.AutoConfig.__dict__["from_pretrained"]

    @functools.wraps(original.__func__)
    def from_pretrained(_: Any, *arguments: Any, **keywords: Any) -> Any:
        import_own_models()
        auto.AutoConfig.from_pretrained = original
        return auto.AutoConfig.from_pretrained(*arguments, **keywords)

    auto.AutoConfig.from_pretrained = classmethod(from_pretrained)
