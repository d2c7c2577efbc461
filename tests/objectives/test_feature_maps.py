"""FeatureMaps: the losses by hand, which layers learn, projections, gradients, padding, errors."""

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import run_model
from haystack_distill.objectives import FeatureMaps
from haystack_distill.objectives.losses import (
    attention_kl_div_loss,
    hidden_state_loss,
    mean_loss,
    standardised_state_loss,
    variance_loss,
)
from haystack_distill.objectives.objective import CORPUS, QUESTIONS
from tests.objectives.helpers import batch, model


def config(layers=2, width=16, heads=2, model_type="bert", **more):
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 24}
    return AutoConfig.for_model(
        model_type, **({"vocab_size": 40, "max_position_embeddings": 24, "initializer_range": 0.3} | shape | more)
    )


def run(objective, student, teacher, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    outputs = run_model(student, inputs, objective.student_request)
    taught = run_model(teacher, inputs, objective.teacher_request)  # with gradients, which must not be used
    return {name: term.values for name, term in objective(outputs, taught, batch).items()}, outputs, taught


def test_means_and_variances_by_hand():
    student = torch.tensor([[[1.0, 3.0], [0.0, 0.0], [7.0, 7.0]]])  # means 2, 0; variances 1, 0
    teacher = torch.tensor([[[0.0, 0.0], [0.0, 4.0], [9.0, 1.0]]])  # means 0, 2; variances 0, 4
    mask = torch.tensor([[1, 1, 0]])
    assert mean_loss(student, teacher, mask).tolist() == [(4 + 4) / 2]
    assert variance_loss(student, teacher, mask).tolist() == [(1 + 4) / 2]


def test_standardised_feature_maps_by_hand():
    student = torch.tensor([[[1.0, 3.0], [0.0, 8.0], [7.0, 7.0]]], requires_grad=True)  # -1, 1 and -1, 1
    teacher = torch.tensor([[[5.0, 1.0], [2.0, 3.0], [9.0, 1.0]]], requires_grad=True)  # 1, -1 and -1, 1
    mask = torch.tensor([[1, 1, 0]])
    found = standardised_state_loss(student, teacher, mask)
    torch.testing.assert_close(found, torch.tensor([(4 + 4 + 0 + 0) / 4]), atol=1e-3, rtol=0)
    # Means and variances are compared elsewhere: a change of either alone is no difference.
    moved = standardised_state_loss(3 * teacher - 4, teacher, mask)
    torch.testing.assert_close(moved, torch.zeros(1), atol=1e-4, rtol=0)
    found.sum().backward()
    assert teacher.grad is None
    assert not student.grad[0, 2].any()


@pytest.mark.parametrize("feature_map_loss", ["standardised", "mse"])
def test_losses_are_sums_over_the_layers_that_learn(feature_map_loss):
    student, teacher, inputs = model(config(3)), model(config(6), seed=1), batch()
    method = FeatureMaps(student_layers=[3, 1], feature_map_loss=feature_map_loss)
    objective = method.objective(student.config, teacher.config)
    assert objective.pairs == [(1, 2), (3, 6)]
    assert objective.data == {QUESTIONS, CORPUS}
    losses, own, target = run(objective, student, teacher, inputs)
    feature_map = {"standardised": standardised_state_loss, "mse": hidden_state_loss}[feature_map_loss]
    compared = {"feature_map": feature_map, "mean": mean_loss, "variance": variance_loss}
    expected = {
        name: sum(
            loss(own.hidden_states[number], target.hidden_states[layer], inputs["attention_mask"])
            for number, layer in objective.pairs
        )
        for name, loss in compared.items()
    }
    expected["attention"] = sum(
        attention_kl_div_loss(own.attention_scores[number], target.attention_scores[layer], inputs["attention_mask"])
        for number, layer in objective.pairs
    )
    torch.testing.assert_close(losses, expected)
    assert all((loss > 0).all() for loss in losses.values())


def test_one_layer_of_a_mobilebert_learns_from_its_inverted_bottleneck_teacher():
    common = {"embedding_size": 8, "trigram_input": True, "normalization_type": "layer_norm"}
    student = model(config(3, 16, 4, "mobilebert", intra_bottleneck_size=8, num_feedforward_networks=2, **common))
    wide = {"intra_bottleneck_size": 32, "num_feedforward_networks": 1, "use_bottleneck_attention": True}
    teacher = model(config(3, 16, 4, "mobilebert", **common, **wide), seed=1)
    objective = FeatureMaps(student_layers=[2]).objective(student.config, teacher.config)
    assert not list(objective.parameters())  # equal widths between the blocks
    losses, _, _ = run(objective, student, teacher, batch())
    assert all((loss > 0).all() and loss.isfinite().all() for loss in losses.values())
    sum(loss.mean() for loss in losses.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert any("layer.1.attention.self.query" in name for name in trained)
    assert any("layer.0." in name for name in trained)  # unless an adaptation freezes the layers below
    assert not any("layer.2." in name or "qa_outputs" in name for name in trained)


def test_zero_for_a_student_that_is_its_teacher():
    same = model(config(2))
    losses, _, _ = run(FeatureMaps().objective(same.config, same.config), same, same, batch())
    torch.testing.assert_close(losses, dict.fromkeys(losses, torch.zeros(2)))


def test_a_window_does_not_depend_on_padding_or_neighbours():
    student, teacher, inputs = model(config(2, 12)), model(config(4), seed=1), batch()
    objective = FeatureMaps().objective(student.config, teacher.config)
    assert {name for name, _ in objective.named_parameters()} == {
        f"projections.{number}.{part}" for number in (1, 2) for part in ("weight", "bias")
    }
    alone = {name: tensor[1:, :4] if tensor.dim() == 2 else tensor[1:] for name, tensor in inputs.items()}
    padded = {name: pad(tensor, (0, 5)) if tensor.dim() == 2 else tensor for name, tensor in alone.items()}
    expected = run(objective, student, teacher, alone)[0]
    for other in (inputs, padded):
        losses = run(objective, student, teacher, other)[0]
        torch.testing.assert_close({name: loss[-1:] for name, loss in losses.items()}, expected)


def test_weight_zero_is_not_computed_and_needs_nothing():
    attention = FeatureMaps("uniform", None, 0, 0, 0, 1).objective(config(2, 12), config(4))
    assert set(attention.weights) == {"attention"}
    assert not attention.student_request.hidden_states
    assert not list(attention.parameters())
    states = FeatureMaps(attention_loss_weight=0, mean_loss_weight=0).objective(config(2, heads=4), config(4))
    assert set(states.weights) == {"feature_map", "variance"}
    assert not states.student_request.attention_scores


def test_what_does_not_fit():
    for layers in ([], [0], "12", [True], [1.0], 3):
        with pytest.raises(DistilError, match="student_layers must be None or a list of layers"):
            FeatureMaps(student_layers=layers)
    with pytest.raises(DistilError, match="variance_loss_weight must be a number of 0 or more"):
        FeatureMaps(variance_loss_weight=-1)
    with pytest.raises(DistilError, match='feature_map_loss must be "standardised" or "mse"'):
        FeatureMaps(feature_map_loss="raw")
    with pytest.raises(DistilError, match="feature_map_loss='mse' would have no effect"):
        FeatureMaps(feature_map_loss_weight=0, feature_map_loss="mse")
    with pytest.raises(DistilError, match="nothing to learn"):
        FeatureMaps("uniform", None, 0, 0, 0, 0)
    with pytest.raises(DistilError, match=r"student_layers contains 2, .* are 1; take some of these"):
        FeatureMaps(layer_mapping="skip", student_layers=[2]).objective(config(2), config(4))
    with pytest.raises(DistilError, match=r"2 attention heads and the teacher 4.*attention_relations"):
        FeatureMaps().objective(config(2), config(4, heads=4))
    with pytest.raises(DistilError, match="needs a teacher"):
        FeatureMaps().objective(config(2), None)
