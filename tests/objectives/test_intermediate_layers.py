"""IntermediateLayers: layer mappings, projections, losses, gradients, errors."""

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertForQuestionAnswering, DistilBertConfig, RobertaConfig

from haystack_distill.errors import DistilError
from haystack_distill.objectives import (
    ContextualRelations,
    FeatureMaps,
    IntermediateLayers,
    ModelOutputs,
    Patient,
    TaskAwareLayers,
    TaskFilters,
    resolve_layer_mapping,
    run_model,
)
from haystack_distill.objectives.losses import (
    attention_kl_div_loss,
    attention_score_loss,
    cosine_loss,
    hidden_state_loss,
    mean_attention_loss,
)


@pytest.mark.parametrize(
    ("mapping", "n_student", "n_teacher", "expected"),
    [
        ("uniform", 4, 12, [3, 6, 9, 12]),
        ("uniform", 3, 3, [1, 2, 3]),
        ("uniform", 1, 12, [12]),
        ("uniform", 5, 12, [2, 5, 7, 10, 12]),  # 2.4, 4.8, 7.2, 9.6, 12
        ("uniform", 4, 6, [2, 3, 5, 6]),  # 1.5 and 4.5 go up
        ("uniform", 6, 4, [1, 1, 2, 3, 3, 4]),  # deeper than the teacher: 0.67, 1.33, 2, 2.67, 3.33, 4
        ("uniform", 6, 2, [1, 1, 1, 1, 2, 2]),  # 0.33 would be no layer at all
        ("last", 4, 12, [9, 10, 11, 12]),
        ("last", 3, 3, [1, 2, 3]),
        ("skip", 6, 12, [2, 4, 6, 8, 10, None]),  # PKD-skip of a six-layer student, as in the paper
        ("skip", 2, 5, [3, None]),
        ([2, None, 5], 3, 6, [2, None, 5]),
        ((1, 1), 2, 1, [1, 1]),
    ],
)
def test_layer_mapping(mapping, n_student, n_teacher, expected):
    assert resolve_layer_mapping(mapping, n_student, n_teacher) == expected


def test_uniform_never_repeats_a_layer_of_a_deeper_teacher():
    for n_teacher in range(1, 30):
        for n_student in range(1, n_teacher + 1):
            layers = resolve_layer_mapping("uniform", n_student, n_teacher)
            assert len(set(layers)) == n_student
            assert layers == sorted(layers)
            assert layers[-1] == n_teacher


@pytest.mark.parametrize(
    ("mapping", "n_student", "n_teacher", "message"),
    [
        ("first", 3, 6, "'first'"),
        ("last", 6, 3, "at least as deep"),
        ("skip", 1, 6, "at least one"),
        ([1, 2], 3, 6, "2 teacher layers.*3 layers"),
        ([1, 2, 7], 3, 6, "contains 7.*1 to 6"),
        ([0, 2, 3], 3, 6, "contains 0"),
        ([-1, 2, 3], 3, 6, "contains -1"),
        ([1, 2, True], 3, 6, "contains True"),
        ([1, 2, 3.0], 3, 6, r"contains 3\.0"),
        ([None, None], 2, 6, "at least one"),
    ],
)
def test_bad_layer_mapping(mapping, n_student, n_teacher, message):
    with pytest.raises(DistilError, match=message):
        resolve_layer_mapping(mapping, n_student, n_teacher)


def config(layers=2, width=16, heads=2):
    return BertConfig(
        vocab_size=40,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=20,
        initializer_range=0.2,  # attention scores of a size that the losses notice
    )


def model(config, seed=0):
    torch.manual_seed(seed)
    return BertForQuestionAnswering(config).eval()


def batch(lengths=(7, 4), padded_to=7, seed=5):
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(len(lengths), padded_to, dtype=torch.long), torch.zeros(len(lengths), padded_to)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 40, (length,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask.long()}


def run(objective, student, teacher, inputs):
    """The losses of a batch, with what the objective says it needs and nothing else."""
    outputs = run_model(student, inputs, objective.student_request)
    with torch.no_grad():
        taught = run_model(teacher, inputs, objective.teacher_request)
    terms = objective(outputs, taught, inputs | {"weight": torch.ones(len(inputs["input_ids"]))})
    assert all(term.mask.all() for term in terms.values())
    return {name: term.values for name, term in terms.items()}, outputs, taught


def test_losses_are_sums_over_mapped_layers():
    student, teacher, inputs = model(config(2)), model(config(4), seed=1), batch()
    objective = IntermediateLayers().objective(student.config, teacher.config)
    losses, ours, theirs = run(objective, student, teacher, inputs)
    mask = inputs["attention_mask"]
    s, t, a, b = ours.hidden_states, theirs.hidden_states, ours.attention_scores, theirs.attention_scores
    assert set(b) == {2, 4}
    expected = {
        "embedding": hidden_state_loss(s[0], t[0], mask),
        "hidden": hidden_state_loss(s[1], t[2], mask) + hidden_state_loss(s[2], t[4], mask),
        "attention": attention_score_loss(a[1], b[2], mask) + attention_score_loss(a[2], b[4], mask),
    }
    torch.testing.assert_close(losses, expected)
    assert all((loss > 0).all() for loss in losses.values())


def test_the_mapping_decides_which_layers_are_compared():
    student, teacher = model(config(2)), model(config(4), seed=1)
    objective = IntermediateLayers(layer_mapping=[None, 3]).objective(student.config, teacher.config)
    losses, ours, theirs = run(objective, student, teacher, batch())
    mask = batch()["attention_mask"]
    assert objective.student_request.attention_scores == (2,)
    assert objective.teacher_request.attention_scores == (3,)
    torch.testing.assert_close(
        losses["hidden"], hidden_state_loss(ours.hidden_states[2], theirs.hidden_states[3], mask)
    )
    torch.testing.assert_close(
        losses["attention"], attention_score_loss(ours.attention_scores[2], theirs.attention_scores[3], mask)
    )


def test_zero_for_a_student_that_is_its_teacher():
    same = model(config(3))
    losses, _, _ = run(IntermediateLayers().objective(same.config, same.config), same, same, batch())
    torch.testing.assert_close(losses, {name: torch.zeros(2) for name in ("embedding", "hidden", "attention")})


def test_a_window_does_not_depend_on_padding_or_neighbours():
    student, teacher = model(config(2, width=12)), model(config(4), seed=1)
    objective = IntermediateLayers().objective(student.config, teacher.config)
    inputs = batch()
    alone = {name: tensor[1:, :4] for name, tensor in inputs.items()}
    padded = {name: torch.nn.functional.pad(tensor[1:], (0, 6)) for name, tensor in inputs.items()}
    expected = run(objective, student, teacher, alone)[0]
    for other in (inputs, padded):
        losses = run(objective, student, teacher, other)[0]
        torch.testing.assert_close({name: loss[-1:] for name, loss in losses.items()}, expected)


def test_projections_only_where_widths_differ():
    same = IntermediateLayers().objective(config(2), config(4))
    assert not list(same.parameters())
    narrow = IntermediateLayers(layer_mapping=[1, None, 4]).objective(config(3, width=12), config(4))
    shapes = {name: tuple(parameter.shape) for name, parameter in narrow.named_parameters()}
    assert shapes == {
        "embedding_projection.weight": (16, 12),
        "embedding_projection.bias": (16,),
        "hidden_projections.1.weight": (16, 12),
        "hidden_projections.1.bias": (16,),
        "hidden_projections.3.weight": (16, 12),
        "hidden_projections.3.bias": (16,),
    }


@pytest.mark.parametrize(
    ("weights", "names", "prefixes"),
    [
        ((1, 0, 0), {"embedding"}, {"embedding_projection"}),
        ((0, 2, 0), {"hidden"}, {"hidden_projections"}),
        ((0, 0, 3), {"attention"}, set()),
        ((0, 1, 1), {"hidden", "attention"}, {"hidden_projections"}),
    ],
)
def test_weight_zero_is_not_computed_and_needs_nothing(weights, names, prefixes):
    student, teacher = model(config(2, width=12)), model(config(4), seed=1)
    objective = IntermediateLayers("uniform", *weights).objective(student.config, teacher.config)
    losses, _, _ = run(objective, student, teacher, batch())
    assert set(losses) == set(objective.weights) == names
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == prefixes
    assert objective.student_request.hidden_states == bool(names & {"embedding", "hidden"})
    assert bool(objective.student_request.attention_scores) == ("attention" in names)
    sum(loss.mean() for loss in losses.values()).backward()
    # A parameter without a gradient would stop distributed training.
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_gradients_reach_student_and_projections_but_not_the_teacher():
    student, teacher = model(config(2, width=12)), model(config(4), seed=1)
    objective = IntermediateLayers().objective(student.config, teacher.config)
    inputs = batch()
    outputs = run_model(student, inputs, objective.student_request)
    taught = run_model(teacher, inputs, objective.teacher_request)  # with gradients, which must not be used
    terms = objective(outputs, taught, inputs | {"weight": torch.ones(2)})
    sum(term.values.mean() for term in terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in objective.parameters())
    for name, parameter in student.named_parameters():
        assert (parameter.grad is None) == ("qa_outputs" in name), name  # the head has no part in these losses


def test_learning_makes_every_loss_smaller():
    student, teacher, inputs = model(config(2, width=12)), model(config(4), seed=1), batch()
    objective = IntermediateLayers().objective(student.config, teacher.config)
    optimiser = torch.optim.Adam([*student.parameters(), *objective.parameters()], lr=0.01)
    before = run(objective, student, teacher, inputs)[0]
    for _ in range(30):
        optimiser.zero_grad()
        sum(loss.mean() for loss in run(objective, student, teacher, inputs)[0].values()).backward()
        optimiser.step()
    after = run(objective, student, teacher, inputs)[0]
    assert all(after[name].mean() < 0.5 * before[name].mean() for name in before)


def test_projections_come_back_from_a_state_dict():
    first, second = (IntermediateLayers().objective(config(2, width=12), config(4)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_deeper_student_shares_teacher_layers():
    student, teacher = model(config(4)), model(config(2), seed=1)
    objective = IntermediateLayers().objective(student.config, teacher.config)
    assert objective.layer_mapping == [1, 1, 2, 2]
    assert objective.teacher_request.attention_scores == (1, 2)
    losses, _, _ = run(objective, student, teacher, batch())
    assert all(loss.isfinite().all() for loss in losses.values())


def test_half_precision_student_with_float32_projections():
    student, teacher = model(config(2, width=12)).bfloat16(), model(config(4), seed=1)
    objective = IntermediateLayers().objective(student.config, teacher.config)
    losses, _, _ = run(objective, student, teacher, batch())
    assert all(loss.dtype == torch.float32 and loss.isfinite().all() for loss in losses.values())


def test_float32_losses_under_autocast():
    student, teacher = model(config(2, width=12)), model(config(4), seed=1)
    objective = IntermediateLayers().objective(student.config, teacher.config)
    exact = run(objective, student, teacher, batch())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run(objective, student, teacher, batch())[0]
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(losses, exact, atol=0.02, rtol=0.05)


def test_families_name_their_sizes_differently():
    student = DistilBertConfig(dim=12, n_layers=2, n_heads=2, hidden_dim=24)
    teacher = RobertaConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2)
    objective = IntermediateLayers().objective(student, teacher)
    assert objective.layer_mapping == [2, 4]
    assert objective.embedding_projection.weight.shape == (16, 12)


@pytest.mark.parametrize("name", ["embedding_loss_weight", "hidden_loss_weight", "attention_loss_weight"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), "1.0", None, True])
def test_bad_weight(name, weight):
    with pytest.raises(DistilError, match=name):
        IntermediateLayers(**{name: weight}).objective(config(2), config(4))


@pytest.mark.parametrize("mapping", [3, None, {1: 2}, True])
def test_a_mapping_that_is_no_list(mapping):
    with pytest.raises(DistilError, match="layer_mapping must be"):
        IntermediateLayers(mapping).objective(config(2), config(4))


@pytest.mark.parametrize("mapping", ["unifrom", 3, None, {1: 2}, [1, "2"], [0], [1, True], [1.0]])
@pytest.mark.parametrize(
    "method", [IntermediateLayers, Patient, FeatureMaps, ContextualRelations, TaskFilters, TaskAwareLayers]
)
def test_a_wrong_mapping_is_refused_before_the_models_are_known(method, mapping):
    with pytest.raises(DistilError, match=r"layer_mapping (must be|contains)"):
        method(layer_mapping=mapping)


def test_all_weights_zero():
    with pytest.raises(DistilError, match="nothing to learn"):
        IntermediateLayers("uniform", 0, 0, 0).objective(config(2), config(4))


def test_different_numbers_of_heads():
    with pytest.raises(DistilError, match=r"2 attention heads.*4.*attention_loss_weight=0.*4 heads"):
        IntermediateLayers().objective(config(2, heads=2), config(4, heads=4))
    IntermediateLayers(attention_loss_weight=0).objective(config(2, heads=2), config(4, heads=4))


def test_architecture_without_attention_scores():
    other = AutoConfig.for_model("deberta-v2", hidden_size=16, num_hidden_layers=4, num_attention_heads=2)
    for pair in ((config(2), other), (other, config(4))):
        with pytest.raises(DistilError, match=r"deberta-v2.*attention_loss_weight=0"):
            IntermediateLayers().objective(*pair)
    IntermediateLayers(attention_loss_weight=0).objective(config(2), other)


def test_missing_outputs_say_what_is_missing():
    objective = IntermediateLayers().objective(config(2), config(4))
    logits = torch.zeros(1, 3)
    bare = ModelOutputs(logits, logits)
    states = tuple(torch.zeros(1, 3, 16) for _ in range(5))
    no_scores = ModelOutputs(logits, logits, hidden_states=states)
    inputs = {"attention_mask": torch.ones(1, 3), "weight": torch.ones(1)}
    with pytest.raises(DistilError, match="student's hidden states"):
        objective(bare, no_scores, inputs)
    with pytest.raises(DistilError, match="teacher's hidden states"):
        objective(no_scores, None, inputs)
    with pytest.raises(DistilError, match="student's attention scores"):
        objective(no_scores, no_scores, inputs)


def test_what_it_needs():
    objective = IntermediateLayers("uniform", 1, 0.5, 2).objective(config(2), config(4))
    assert objective.student_request.hidden_states
    assert objective.student_request.attention_scores == (1, 2)
    assert objective.teacher_request.attention_scores == (2, 4)
    assert objective.weights == {"embedding": 1.0, "hidden": 0.5, "attention": 2.0}


def test_other_losses_of_hidden_states_and_attention():
    student, teacher, inputs = model(config(2)), model(config(2), seed=1), batch()
    mask = inputs["attention_mask"]
    for attention_loss, loss in (("kl_div", attention_kl_div_loss), ("mse_mean", mean_attention_loss)):
        objective = IntermediateLayers(hidden_loss="cosine", attention_loss=attention_loss).objective(
            student.config, teacher.config
        )
        losses, own, target = run(objective, student, teacher, inputs)
        attention = [loss(own.attention_scores[number], target.attention_scores[number], mask) for number in (1, 2)]
        hidden = [cosine_loss(own.hidden_states[number], target.hidden_states[number], mask) for number in (1, 2)]
        torch.testing.assert_close(losses["attention"], sum(attention))
        torch.testing.assert_close(losses["hidden"], sum(hidden))
        torch.testing.assert_close(
            losses["embedding"], hidden_state_loss(own.hidden_states[0], target.hidden_states[0], mask)
        )


def test_the_mean_over_heads_by_hand_and_with_other_numbers_of_heads():
    own, target = torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([[[[5.0]]]])  # 2 heads, 1 head
    assert mean_attention_loss(own, target, torch.ones(1, 1)).tolist() == [9.0]
    student, teacher = model(config(2, heads=2)), model(config(2, heads=4), seed=1)
    objective = IntermediateLayers(attention_loss="mse_mean").objective(student.config, teacher.config)
    losses, _, _ = run(objective, student, teacher, batch())
    assert (losses["attention"] > 0).all()


def test_a_loss_without_effect():
    for options in ({"hidden_loss": "mae"}, {"attention_loss": None}):
        with pytest.raises(DistilError, match=f'{next(iter(options))} must be one of "mse'):
            IntermediateLayers(**options)
    with pytest.raises(DistilError, match="hidden_loss='cosine' has no effect with hidden_loss_weight=0"):
        IntermediateLayers(hidden_loss_weight=0, hidden_loss="cosine")
    with pytest.raises(DistilError, match="attention_loss='kl_div' has no effect with attention_loss_weight=0"):
        IntermediateLayers(attention_loss_weight=0, attention_loss="kl_div")
