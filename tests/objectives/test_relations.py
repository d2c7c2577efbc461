"""AttentionRelations: relations by hand, widths and heads that differ, gradients, padding, errors."""

import math

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoConfig, BertConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import (
    ModelOutputs,
    OutputRequest,
    QueryKeyValue,
    dot_product_scores,
)
from haystack_distill.objectives import AttentionRelations, IntermediateLayers
from haystack_distill.objectives.losses import attention_kl_div_loss, relation_loss
from haystack_distill.objectives.objective import CORPUS, QUESTIONS
from tests.objectives.helpers import batch, config, model, run


def test_a_relation_by_hand():
    """Two tokens and one relation head: the softmax over two keys is a sigmoid of the difference of their scores."""
    own = QueryKeyValue(*(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]) for _ in range(3)))
    target = QueryKeyValue(*(torch.tensor([[[1.0, 1.0], [1.0, 0.0]]]) for _ in range(3)))
    objective = AttentionRelations(relation_heads=1, query_query_loss_weight=0, key_key_loss_weight=0).objective(
        BertConfig(hidden_size=2, num_attention_heads=1, num_hidden_layers=1),
        BertConfig(hidden_size=2, num_attention_heads=1, num_hidden_layers=1),
    )
    values = objective(
        ModelOutputs(query_key_value={1: own}),
        ModelOutputs(query_key_value={1: target}),
        {"attention_mask": torch.ones(1, 2), "weight": torch.ones(1)},
    )["value_value"].values

    def divergence(scores, target_scores):
        p, q = (1 / (1 + math.exp((b - a) / math.sqrt(2))) for a, b in (target_scores, scores))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    # Products of each token with both tokens: the student's 1, 0 and 0, 4; the teacher's 2, 1 and 1, 1.
    expected = (divergence((1, 0), (2, 1)) + divergence((0, 4), (1, 1))) / 2
    assert values.tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("student", "teacher", "heads"),
    [
        (config(2, 12, 2), config(3, 24, 4), 4),
        (config(2, 12, 3), config(3, 16, 8), 4),  # 8 does not divide 12
        (config(2, 12, 2, "distilbert"), config(3, 24, 4, "mpnet"), 4),
        (
            config(2, 16, 2, "mobilebert", embedding_size=8, intra_bottleneck_size=8),
            config(3, 24, 4, "deberta-v2", relative_attention=True, share_att_key=True, pos_att_type=["p2c", "c2p"]),
            4,
        ),
        (config(3, 12, 2, "albert", embedding_size=6), config(3, 24, 4, "electra", embedding_size=6), 4),
    ],
    ids=lambda value: str(getattr(value, "model_type", "")),
)
def test_widths_heads_and_families_may_differ(student, teacher, heads):
    objective = AttentionRelations().objective(student, teacher)
    assert (objective.student_layer, objective.teacher_layer) == (student.num_hidden_layers, 3)
    assert objective.relation_heads == heads
    assert objective.data == {QUESTIONS, CORPUS}
    student, teacher = model(student), model(teacher, seed=1)
    losses = run(objective, student, teacher, batch())
    assert set(losses) == {"query_query", "key_key", "value_value"}
    assert all((loss > 0).all() for loss in losses.values())
    sum(loss.mean() for loss in losses.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert any("word_embeddings" in name for name in trained)
    assert not any("qa_outputs" in name for name in trained)


def test_zero_for_a_student_that_is_its_teacher():
    same = model(config(2, 12, 4))
    losses = run(AttentionRelations(query_key_loss_weight=1).objective(same.config, same.config), same, same, batch())
    torch.testing.assert_close(losses, dict.fromkeys(losses, torch.zeros(2)))


def test_a_window_does_not_depend_on_padding_or_neighbours():
    student, teacher = model(config(2, 12, 2)), model(config(3, 24, 4), seed=1)
    objective = AttentionRelations(query_key_loss_weight=0.5, relation_heads=6).objective(
        student.config, teacher.config
    )
    inputs = batch()
    alone = {name: tensor[1:, :4] if tensor.dim() == 2 else tensor[1:] for name, tensor in inputs.items()}
    padded = {name: pad(tensor, (0, 5)) if tensor.dim() == 2 else tensor for name, tensor in alone.items()}
    expected = run(objective, student, teacher, alone)
    for other in (inputs, padded):
        losses = run(objective, student, teacher, other)
        torch.testing.assert_close({name: loss[-1:] for name, loss in losses.items()}, expected)


def test_attention_distributions_are_the_models_own():
    """MiniLM's first loss, from the probabilities of eager attention; both models have as many heads."""
    student, teacher = (
        model(shape, seed, attn_implementation="eager") for seed, shape in enumerate([config(2, 12), config(3, 24)])
    )
    options = {f"{name}_loss_weight": 0 for name in ("query_query", "key_key", "value_value")}
    objective = AttentionRelations(2, 1, query_key_loss_weight=1, **options).objective(student.config, teacher.config)
    inputs = batch((6, 6))
    p, q = (
        each(inputs["input_ids"], output_attentions=True).attentions[layer - 1]
        for each, layer in ((teacher, 2), (student, 1))
    )
    expected = (p * (p / q).log()).sum(dim=3).mean(dim=(1, 2))
    torch.testing.assert_close(run(objective, student, teacher, inputs), {"query_key": expected}, atol=1e-5, rtol=1e-4)


def test_values_and_gradients_are_those_of_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(3, 5, 8, generator=generator, requires_grad=True) for _ in range(2)]
    target = [torch.randn(3, 5, 12, generator=generator) for _ in range(2)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    weights = torch.tensor([1.0, 3.0, 2.0])
    logs = []
    for first, second in (own, target):
        scores = dot_product_scores(first, second, 4)
        logs.append(scores.masked_fill(mask[:, None, None, :] == 0, -1e30).log_softmax(dim=3))
    per_token = (logs[1].exp() * (logs[1] - logs[0])).sum(dim=3).mean(dim=1)
    expected = (per_token * mask).sum(dim=1) / mask.sum(dim=1)
    gradients = torch.autograd.grad((expected * weights).sum(), own)
    for found in (
        relation_loss(tuple(own), tuple(target), mask, 4),
        attention_kl_div_loss(dot_product_scores(*own, 4), dot_product_scores(*target, 4), mask),
    ):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), own), gradients)
    own[1].requires_grad_(False)  # frozen keys, for example
    relation_loss(tuple(own), tuple(target), mask, 4).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(relation_loss(tuple(own), tuple(target), mask, 4), expected)


def test_layers_above_the_student_layer_are_not_trained():
    student, teacher = model(config(3, 12, 2)), model(config(3, 24, 4), seed=1)
    objective = AttentionRelations(teacher_layer=2, student_layer=2).objective(student.config, teacher.config)
    assert objective.student_request == objective.teacher_request == OutputRequest(query_key_value=(2,))
    sum(loss.mean() for loss in run(objective, student, teacher, batch()).values()).backward()
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert any("layer.1.attention.self.value" in name for name in trained)
    assert not any("layer.2." in name or "layer.1.output" in name for name in trained)


def test_what_does_not_fit():
    for options in ({"teacher_layer": 0}, {"student_layer": 1.0}, {"relation_heads": True}):
        with pytest.raises(DistilError, match=f"{next(iter(options))} must be None or a whole number"):
            AttentionRelations(**options)
    with pytest.raises(DistilError, match="query_key_loss_weight must be a number of 0 or more"):
        AttentionRelations(query_key_loss_weight=-1)
    with pytest.raises(DistilError, match="nothing to learn"):
        AttentionRelations(None, None, None, 0, 0, 0)
    student, teacher = config(2, 12, 2), config(3, 16, 4)
    with pytest.raises(DistilError, match=r"relation_heads=3 .*12 and 16; take one of 1, 2, 4"):
        AttentionRelations(relation_heads=3).objective(student, teacher)
    with pytest.raises(DistilError, match="teacher_layer is 4, but the teacher has layers 1 to 3"):
        AttentionRelations(teacher_layer=4).objective(student, teacher)
    with pytest.raises(DistilError, match="student_layer is 3, but the student has layers 1 to 2"):
        AttentionRelations(student_layer=3).objective(student, teacher)
    with pytest.raises(DistilError, match="needs a teacher"):
        AttentionRelations().objective(student, None)
    with pytest.raises(DistilError, match="queries, keys and values of a 'funnel' model are not available"):
        AttentionRelations().objective(student, AutoConfig.for_model("funnel"))
    objective = AttentionRelations().objective(student, teacher)
    with pytest.raises(DistilError, match="student's queries, keys and values"):
        objective(ModelOutputs(), None, batch())


def test_it_is_the_remedy_where_head_counts_differ():
    with pytest.raises(DistilError, match="attention_relations"):
        IntermediateLayers().objective(config(2, 12, 2), config(3, 12, 4))
    with pytest.raises(DistilError, match="attention_relations"):
        IntermediateLayers().objective(config(2, 12, 2), config(3, 12, 2, "deberta-v2"))
