"""DistilBERT's triple loss: weights, what is computed, what cannot be compared."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from haystack_distill.errors import DistilError
from haystack_distill.objectives import LanguageModelObjective, ModelOutputs, run_model
from haystack_distill.objectives.losses import cosine_loss, masked_word_loss, soft_target_loss

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, pad_token_id=0
)
BATCH = {
    "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "labels": torch.tensor([[-100, 6, -100, -100], [-100, -100, -100, -100]]),
}


def outputs(seed):
    torch.manual_seed(seed)
    model = BertForMaskedLM(CONFIG).eval()
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    return run_model(model, inputs, hidden_states=True)


def test_each_part_is_its_loss():
    student, teacher = outputs(0), outputs(1)
    objective = LanguageModelObjective(CONFIG, CONFIG, temperature=3.0)
    assert objective.weights == {"soft_targets": 45.0, "masked_words": 2.0, "cosine": 1.0}
    losses = objective(student, BATCH, teacher)
    mask = BATCH["attention_mask"]
    torch.testing.assert_close(
        losses["soft_targets"], soft_target_loss(student.token_logits, teacher.token_logits, mask, 3.0)
    )
    torch.testing.assert_close(losses["masked_words"], masked_word_loss(student.token_logits, BATCH["labels"]))
    last = student.hidden_states[-1], teacher.hidden_states[-1]
    torch.testing.assert_close(losses["cosine"], cosine_loss(*last, mask))
    assert losses["masked_words"][1] == 0


def test_a_weight_of_zero_leaves_its_part_out():
    objective = LanguageModelObjective(CONFIG, CONFIG, cosine_weight=0, masked_word_weight=0)
    assert not objective.needs_hidden_states
    assert list(objective(outputs(0), BATCH, outputs(1))) == ["soft_targets"]


def test_what_cannot_be():
    other = BertConfig(**CONFIG.to_dict() | {"vocab_size": 51})
    wide = BertConfig(**CONFIG.to_dict() | {"hidden_size": 32})
    with pytest.raises(DistilError, match="vocabulary has 50 entries and the teacher's 51"):
        LanguageModelObjective(CONFIG, other)
    with pytest.raises(DistilError, match=r"16 wide and the teacher 32.*cosine_weight=0"):
        LanguageModelObjective(CONFIG, wide)
    LanguageModelObjective(CONFIG, wide, cosine_weight=0)
    for temperature in (0, "2", None, True):
        with pytest.raises(DistilError, match="temperature has to be greater than 0 and a number, not"):
            LanguageModelObjective(CONFIG, CONFIG, temperature=temperature)
    for name in ("soft_target_weight", "masked_word_weight", "cosine_weight"):
        for weight in ("1", None, True, float("nan")):
            with pytest.raises(DistilError, match=f"{name} has to be 0 or more and a number, not"):
                LanguageModelObjective(CONFIG, CONFIG, **{name: weight})
    with pytest.raises(DistilError, match="masked_word_weight has to be 0 or more"):
        LanguageModelObjective(CONFIG, CONFIG, masked_word_weight=-1)
    with pytest.raises(DistilError, match="nothing to learn"):
        LanguageModelObjective(CONFIG, CONFIG, 1.0, 0, 0, 0)
    with pytest.raises(DistilError, match="need a head"):
        LanguageModelObjective(CONFIG, CONFIG)(ModelOutputs(), BATCH, outputs(1))
