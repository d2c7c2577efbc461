"""Students with early exits: a reader whose every layer but the last gets a small span head."""

import torch
from torch import nn

from haystack_distill.errors import DistilError
from haystack_distill.models.early_exit import early_exit_class, early_exit_config
from haystack_distill.models.reader import Reader
from haystack_distill.students.layers import require_weights
from haystack_distill.utils.checks import check_argument, is_integer, require_seed
from haystack_distill.utils.families import EARLY_EXIT, family_of


def early_exit(reader: Reader, *, branch_size: int = 128, match_size: int = 32, seed: int = 42) -> Reader:
    """Create a reader with early exits from any reader, also from a distilled student.

    Layers and head are those of the reader, which answers as before until it is given a `speed`. The branches and
    matchers must learn first: `objectives.SelfDistillation` (FastBERT, Liu et al. 2020, arXiv 2004.02178).

    Args:
        reader: A reader of two layers or more. It is not changed.
        branch_size: Width of the hidden layer of each branch; 0 for branches of one dense layer, which start as copies
            of the reader's head.
        match_size: Width in which question and context are compared, layer by layer, so that of many passages those
            leave early that hold no answer (`models.matching`); 0 for none of this.
        seed: The seed of the random weights of branches and matchers.

    Raises:
        DistilError: The reader has early exits already, one layer only or no weights, its family cannot have early
            exits, or an argument is out of range.

    Example:
        >>> from haystack_distill.models.embedded_teacher import embedded_teacher
        >>> len(early_exit(embedded_teacher()).model.branches)
        5
    """
    require_weights(reader)
    check_argument("branch_size", branch_size, is_integer(branch_size, 0), "a whole number of at least 0")
    check_argument("match_size", match_size, is_integer(match_size, 0), "a whole number of at least 0")
    require_seed(seed)
    require_no_exits(reader, "it needs no others; train it as it is")
    plain = reader.model
    family = family_of(plain.config)
    made_class = early_exit_class(family)
    if plain.config.num_hidden_layers < 2:
        raise DistilError("a reader of one layer has no earlier layer to leave at; take one of two layers or more")
    values = {
        name: value
        for name, value in plain.config.to_dict().items()
        if name != "model_type" and not name.startswith("_")  # how the other model was set up
    }
    config = early_exit_config(family)(**values, branch_size=int(branch_size), match_size=int(match_size))
    config.name_or_path = ""  # what it was loaded from is another model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The same kernel of attention, or the logits would differ in their last bits.
        model = made_class._from_config(config, attn_implementation=plain.config._attn_implementation)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith(("branches.", "matchers.")) for name in missing)
    if not branch_size:
        for branch in model.branches:
            assert isinstance(branch, nn.Linear)
            branch.load_state_dict(plain.qa_outputs.state_dict())
    made = reader.replace(model=model)
    made.untrained = reader.untrained
    return made


def require_no_exits(reader: object, remedy: str) -> None:
    """Check that a reader, or a language model, has no early exits.

    Args:
        reader: The reader or language model.
        remedy: What to do, for the message.

    Raises:
        DistilError: It has.
    """
    model = getattr(reader, "model", None)
    if model is not None and str(model.config.model_type).startswith(EARLY_EXIT):  # the encoder of such a reader too
        raise DistilError(f"the reader has early exits; {remedy}")
