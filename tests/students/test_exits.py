"""students.early_exit: branches on a reader's own layers, and what cannot have them."""

from collections.abc import Callable

import pytest
import torch

from haystack_distill import Reader, students
from haystack_distill.errors import DistilError

MakeReader = Callable[..., Reader]


def test_the_reader_is_kept_and_gets_branches(tiny_reader: MakeReader) -> None:
    plain = tiny_reader()
    made = students.early_exit(plain, branch_size=8, match_size=4)
    weights = made.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.model.state_dict().items())
    assert sorted(name for name in weights if name not in plain.model.state_dict()) == [
        *(f"branches.{layer}.{place}.{kind}" for layer in range(3) for place in (0, 2) for kind in ("bias", "weight")),
        *(
            f"matchers.{layer}.{name}"
            for layer in range(4)
            for name in ("first.bias", "first.weight", "projection.weight", "scale", "weight.bias", "weight.weight")
        ),
    ]
    assert made.n_parameters == plain.n_parameters + 3 * (33 * 8 + 9 * 2) + 4 * (32 * 4 + 33 * 2 + 1)
    assert not students.early_exit(plain, match_size=0).model.matchers
    made.model.qa_outputs.weight.data.zero_()
    assert plain.model.qa_outputs.weight.any()  # not shared


def test_branches_by_seed_or_as_copies_of_the_head(tiny_reader: MakeReader) -> None:
    first, same, other = (students.early_exit(tiny_reader(), seed=seed).model.branches for seed in (1, 1, 2))
    assert torch.equal(first[0][0].weight, same[0][0].weight)
    assert not torch.equal(first[0][0].weight, other[0][0].weight)
    model = students.early_exit(tiny_reader(), branch_size=0).model
    assert all(torch.equal(branch.weight, model.qa_outputs.weight) for branch in model.branches)


def test_of_a_cut_student_with_a_smaller_vocabulary(tiny_reader: MakeReader) -> None:
    cut = students.from_teacher(tiny_reader(), layers=2)
    made = students.early_exit(cut)
    assert len(made.model.branches) == 1
    pruned = students.prune_vocabulary(made, ["the first program", "who wrote it"])
    assert len(pruned.tokenizer) < len(made.tokenizer)
    question = "who wrote it", "the first program"
    assert pruned.answer(*question, speed=1.0)[0].logit == pytest.approx(made.answer(*question, speed=1.0)[0].logit)


def test_what_cannot_have_early_exits(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    with pytest.raises(DistilError, match=r"a reader of one layer has no earlier layer to leave at; take"):
        students.early_exit(tiny_reader(num_hidden_layers=1))
    with pytest.raises(DistilError, match=r"a 'bilstm' model cannot have early exits"):
        students.early_exit(students.bilstm(reader, units=8, embedding_size=6))
    with pytest.raises(DistilError, match=r"branch_size must be a whole number of at least 0"):
        students.early_exit(reader, branch_size=-1)
    with pytest.raises(DistilError, match=r"match_size must be a whole number of at least 0"):
        students.early_exit(reader, match_size=0.5)
    made = students.early_exit(reader)
    for make in (students.early_exit, students.from_teacher, students.from_config):
        with pytest.raises(DistilError, match="the reader has early exits; "):
            make(made)
    mobile = students.from_config(reader, model_type="mobilebert", num_hidden_layers=2)
    with pytest.raises(DistilError, match=r"a 'mobilebert' model cannot have early exits \(only bert, "):
        students.early_exit(mobile)
