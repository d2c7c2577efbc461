"""The adaptation `lora`: low-rank updates of the dense layers are trained, and merged into them afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from haystack_distill.errors import DistilError
from haystack_distill.models.adapters import adapters_of
from haystack_distill.models.low_rank import LowRankUpdate, merge_update
from haystack_distill.students.layers import dense_layers
from haystack_distill.training.adaptation import Adaptation, head_of
from haystack_distill.utils.checks import check_argument, is_integer, is_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TARGETS = ("query_value", "attention", "all")
# The last part of their names in BERT and most others, in DistilBERT, DeBERTa-v2 and MPNet.
_QUERY_AND_VALUE = ("query", "value", "q_lin", "v_lin", "query_proj", "value_proj", "q", "v")


@dataclass(frozen=True)
class Lora(Adaptation):
    """Low-rank updates of the encoder's dense layers are trained, with the head (LoRA).

    Hu et al. 2022 (arXiv 2106.09685), through peft: a dense layer computes `W x + alpha / rank * B A x`, where only A
    (rank, in) and B (out, rank) are trained. B starts at 0. After the last step the product is added to W, so that a
    plain model is left.

    Args:
        rank: Rank of the updates, r in the paper.
        alpha: The updates are scaled by `alpha / rank`.
        target: The dense layers with updates: "query_value" (the paper's choice), "attention", or "all" of each layer.
        save_only_trained: Save only the updates and the other weights that differ from those of the reader or encoder
            that the student was loaded from, with a reference to it; `Reader.load` adds the updates to its weights.
    """

    rank: int = 16
    alpha: float = 32.0
    target: Literal["query_value", "attention", "all"] = "all"
    save_only_trained: bool = False

    def __post_init__(self) -> None:
        check_argument("rank", self.rank, is_integer(self.rank, 1), "a whole number of at least 1")
        check_argument("alpha", self.alpha, is_number(self.alpha) and self.alpha > 0, "a number above 0")
        check_argument("target", self.target, self.target in _TARGETS, f"one of {', '.join(_TARGETS)}")
        only = self.save_only_trained
        check_argument("save_only_trained", only, isinstance(only, bool), "True or False")

    def prepare(self, model: PreTrainedModel) -> None:
        """Insert the updates and freeze the rest but the head; see `Adaptation.prepare`.

        Raises:
            DistilError: peft is not installed, the model has adapters, or none of its dense layers is a target.
        """
        peft = _import_peft()
        if adapters_of(model):
            raise DistilError("the student has adapters, which lora cannot update; choose the adaptation adapters")
        names = [name for name in dense_layers(model) if self._is_target(name)]
        if not names:
            remedy = "choose another adaptation" if self.target == "all" else "set target='all'"
            raise DistilError(
                f"a {model.config.model_type!r} model has no dense layers of its own for target={self.target!r}; "
                f"{remedy}"
            )
        head = head_of(model)
        trained = [parameter for parameter in model.parameters() if id(parameter) in head and parameter.requires_grad]
        peft.inject_adapter_in_model(peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=names), model)
        for parameter in trained:  # peft froze them
            parameter.requires_grad_(True)

    def finish(self, model: PreTrainedModel) -> None:
        """Merge the updates into the dense layers; see `Adaptation.finish`."""
        if not hasattr(model, "peft_config"):  # nothing was inserted
            return
        from peft.tuners.lora import LoraLayer

        updated: list[tuple[str, Any]] = [
            (name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)
        ]
        for name, module in updated:
            dense = module.get_base_layer()
            if self.save_only_trained:
                for key, scale in module.scaling.items():
                    down, up = module.lora_A[key].weight, module.lora_B[key].weight
                    merge_update(dense, LowRankUpdate(down, up, scale))
            else:
                module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, dense)
        del model.peft_config

    def _is_target(self, name: str) -> bool:
        if self.target == "query_value":
            return name.rpartition(".")[2] in _QUERY_AND_VALUE
        return self.target == "all" or "attention" in name or "attn" in name


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise DistilError("the adaptation lora needs the package peft; pip install 'haystack-distill[lora]'") from error
    return peft
