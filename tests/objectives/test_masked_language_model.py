"""DistilBERT's triple loss: weights, what is computed, what cannot be compared."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from haystack_distill.errors import DistilError
from haystack_distill.objectives import MaskedLanguageModel, ModelOutputs, OutputRequest, run_model
from haystack_distill.objectives.losses import cosine_loss, masked_word_loss, soft_target_loss

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, pad_token_id=0
)
BATCH = {
    "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "weight": torch.ones(2),
    "labels": torch.tensor([[-100, 6, -100, -100], [-100, -100, -100, -100]]),
}


def outputs(seed):
    torch.manual_seed(seed)
    model = BertForMaskedLM(CONFIG).eval()
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    return run_model(model, inputs, OutputRequest(logits=True, hidden_states=True))


def test_each_part_is_its_loss():
    student, teacher = outputs(0), outputs(1)
    objective = MaskedLanguageModel(temperature=3.0).objective(CONFIG, CONFIG)
    assert objective.weights == {"soft_targets": 45.0, "masked_words": 2.0, "cosine": 1.0}
    terms = objective(student, teacher, BATCH)
    assert terms["soft_targets"].mask.all()
    assert terms["cosine"].mask.all()
    assert terms["masked_words"].mask.tolist() == [True, False]  # nothing is masked in the second window
    losses = {name: term.values for name, term in terms.items()}
    mask = BATCH["attention_mask"]
    torch.testing.assert_close(
        losses["soft_targets"], soft_target_loss(student.token_logits, teacher.token_logits, mask, 3.0)
    )
    torch.testing.assert_close(losses["masked_words"], masked_word_loss(student.token_logits, BATCH["labels"]))
    last = student.hidden_states[-1], teacher.hidden_states[-1]
    torch.testing.assert_close(losses["cosine"], cosine_loss(*last, mask))
    assert losses["masked_words"][1] == 0


def test_a_weight_of_zero_leaves_its_part_out():
    objective = MaskedLanguageModel(cosine_weight=0, masked_word_weight=0).objective(CONFIG, CONFIG)
    assert not objective.student_request.hidden_states
    assert list(objective(outputs(0), outputs(1), BATCH)) == ["soft_targets"]


def test_soft_targets_of_masked_words_alone():
    student, teacher = outputs(0), outputs(1)
    student.token_logits.retain_grad()
    objective = MaskedLanguageModel(soft_target_tokens="masked").objective(CONFIG, CONFIG)
    terms = objective(student, teacher, BATCH)
    assert terms["soft_targets"].mask.tolist() == objective.masks(BATCH)["soft_targets"].tolist() == [True, False]
    assert terms["cosine"].mask.all()
    token = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0]])  # the one masked word
    expected = soft_target_loss(student.token_logits, teacher.token_logits, token, 2.0)
    torch.testing.assert_close(terms["soft_targets"].values, expected)
    assert terms["soft_targets"].values[1] == 0
    terms["soft_targets"].values.sum().backward()
    gradient = student.token_logits.grad
    assert gradient.isfinite().all()
    assert gradient.abs().sum(dim=2).bool().tolist() == token.bool().tolist()


def test_what_cannot_be():
    with pytest.raises(DistilError, match='soft_target_tokens must be "all" or "masked"'):
        MaskedLanguageModel(soft_target_tokens="some")
    with pytest.raises(DistilError, match="so soft_target_tokens='masked' would have no effect"):
        MaskedLanguageModel(soft_target_weight=0, soft_target_tokens="masked")
    with pytest.raises(DistilError, match=r"so temperature=7.0 would have no effect"):
        MaskedLanguageModel(soft_target_weight=0, temperature=7.0)
    other = BertConfig(**CONFIG.to_dict() | {"vocab_size": 51})
    wide = BertConfig(**CONFIG.to_dict() | {"hidden_size": 32})
    with pytest.raises(DistilError, match="vocabulary has 50 entries and the teacher's 51"):
        MaskedLanguageModel().objective(CONFIG, other)
    with pytest.raises(DistilError, match=r"16 wide and the teacher 32.*cosine_weight=0"):
        MaskedLanguageModel().objective(CONFIG, wide)
    MaskedLanguageModel(cosine_weight=0).objective(CONFIG, wide)
    for temperature in (0, "2", None, True):
        with pytest.raises(DistilError, match="temperature must be a number above 0, not"):
            MaskedLanguageModel(temperature=temperature).objective(CONFIG, CONFIG)
    for name in ("soft_target_weight", "masked_word_weight", "cosine_weight"):
        for weight in ("1", None, True, float("nan")):
            with pytest.raises(DistilError, match=f"{name} must be a number of 0 or more, not"):
                MaskedLanguageModel(**{name: weight}).objective(CONFIG, CONFIG)
    with pytest.raises(DistilError, match="masked_word_weight must be a number of 0 or more"):
        MaskedLanguageModel(masked_word_weight=-1).objective(CONFIG, CONFIG)
    with pytest.raises(DistilError, match="nothing to learn"):
        MaskedLanguageModel(1.0, 0, 0, 0).objective(CONFIG, CONFIG)
    for method, who, pair in (
        (MaskedLanguageModel(), "student", (ModelOutputs(), outputs(1))),
        (MaskedLanguageModel(), "teacher", (outputs(1), ModelOutputs())),
        (MaskedLanguageModel(soft_target_weight=0), "student", (ModelOutputs(), outputs(1))),
    ):
        with pytest.raises(DistilError, match=f"the {who} needs a head"):
            method.objective(CONFIG, CONFIG)(*pair, BATCH)


def test_the_cosine_needs_neither_heads_nor_the_same_words():
    other = BertConfig(**CONFIG.to_dict() | {"vocab_size": 51})
    objective = MaskedLanguageModel(soft_target_weight=0, masked_word_weight=0).objective(CONFIG, other)
    assert (objective.student_request.logits, objective.teacher_request.logits) == (False, False)
    bare = [ModelOutputs(hidden_states=outputs(seed).hidden_states) for seed in (0, 1)]
    term = objective(*bare, BATCH)["cosine"]
    expected = cosine_loss(bare[0].hidden_states[-1], bare[1].hidden_states[-1], BATCH["attention_mask"])
    torch.testing.assert_close(term.values, expected)
    words = MaskedLanguageModel(soft_target_weight=0).objective(CONFIG, CONFIG)
    assert (words.student_request.logits, words.teacher_request.logits) == (True, False)
