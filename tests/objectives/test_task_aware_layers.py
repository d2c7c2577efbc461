"""TaskFilters and TaskAwareLayers: filters, losses, gradients, and the file between the two stages."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, mse_loss

from haystack_distill import DistilError, ReaderTrainer, TrainingSettings
from haystack_distill.objectives import Method, ModelOutputs, PredictionLayer, TaskAwareLayers, TaskFilters
from tests.objectives.test_intermediate_layers import config

STUDENT, TEACHER = config(2, 16), config(4, 32)


def outputs(width: int, layers: int, length: int = 6, seed: int = 0) -> ModelOutputs:
    generator = torch.Generator().manual_seed(seed)
    states = tuple(torch.randn(2, length, width, generator=generator, requires_grad=True) for _ in range(layers + 1))
    return ModelOutputs(hidden_states=states)


def batch(length: int = 6) -> dict[str, torch.Tensor]:
    mask = torch.zeros(2, length, dtype=torch.long)
    mask[0, :6], mask[1, :4] = 1, 1
    return {
        "attention_mask": mask,
        "weight": torch.ones(2),
        "labelled": torch.tensor([True, False]),
        "start_positions": torch.tensor([2, 99]),
        "end_positions": torch.tensor([4, 99]),
    }


def filtered(tmp_path, **changed) -> TaskAwareLayers:
    """The second stage, after a first one of fresh filters."""
    torch.manual_seed(0)
    (results,) = TaskFilters(**changed).objective(STUDENT, TEACHER).results().values()
    save_file(results, tmp_path / "task_filters.safetensors")
    return TaskAwareLayers(filters=str(tmp_path))


def test_filters_learn_the_labels_of_labelled_windows_and_no_model_gets_a_gradient() -> None:
    torch.manual_seed(1)
    objective = TaskFilters().objective(STUDENT, TEACHER)
    student, teacher = outputs(16, 2), outputs(32, 4, seed=1)
    terms = objective(student, teacher, batch())
    assert list(terms) == list(objective.weights) == ["labels_teacher", "labels_student"]
    expected = torch.tensor(0.0)
    for name in ("2", "4"):  # uniform: layers 2 and 4 of the teacher
        logits = objective.teacher_heads[name](objective.teacher_filters[name](teacher.hidden_states[int(name)]))[:1]
        expected += (
            cross_entropy(logits[..., 0], torch.tensor([2])) + cross_entropy(logits[..., 1], torch.tensor([4]))
        ) / 2
    torch.testing.assert_close(terms["labels_teacher"].values[0], expected)
    assert terms["labels_teacher"].mask.tolist() == [True, False]
    assert terms["labels_student"].values[1] == 0
    sum(term.values.sum() for term in terms.values()).backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert all(state.grad is None for side in (student, teacher) for state in side.hidden_states)


def test_the_first_stage_leaves_its_filters_without_heads() -> None:
    objective = TaskFilters().objective(STUDENT, TEACHER)
    (results,) = objective.results().values()
    assert {name.split(".")[0] for name in results} == {"teacher_filters", "student_filters"}
    assert {name.split(".")[1] for name in results if name.startswith("teacher")} == {"2", "4"}
    assert results["student_filters.1.weight"].shape == (32, 16)


def test_filtered_states_are_compared(tmp_path) -> None:
    objective = filtered(tmp_path).objective(STUDENT, TEACHER)
    objective.prepare()
    kept = load_file(tmp_path / "task_filters.safetensors")
    assert torch.equal(objective.student_filters["2"].weight, kept["student_filters.2.weight"])
    student, teacher = outputs(16, 2), outputs(32, 4, seed=1)
    term = objective(student, teacher, batch())["filtered"]
    expected = sum(
        mse_loss(
            objective.student_filters[str(own)](student.hidden_states[own][0]),
            objective.teacher_filters[str(layer)](teacher.hidden_states[layer][0]),
        )
        for own, layer in ((1, 2), (2, 4))
    )
    torch.testing.assert_close(term.values[0], expected)
    assert term.mask.all()  # labels are not needed
    term.values.sum().backward()
    assert all(parameter.grad is not None for parameter in objective.student_filters.parameters())
    assert not any(parameter.requires_grad for parameter in objective.teacher_filters.parameters())
    assert student.hidden_states[1].grad is not None
    assert student.hidden_states[0].grad is None  # the embeddings are not compared
    assert all(state.grad is None for state in teacher.hidden_states)


def test_equal_states_behind_equal_filters_cost_nothing_and_padding_does_not_count(tmp_path) -> None:
    objective = TaskAwareLayers(filters=str(tmp_path)).objective(TEACHER, TEACHER)
    objective.student_filters.load_state_dict(objective.teacher_filters.state_dict())
    states = outputs(32, 4)
    assert objective(states, states, batch())["filtered"].values.tolist() == [0, 0]
    student = outputs(32, 4, seed=2)
    loss = objective(student, states, batch())["filtered"].values
    for side in (student, states):
        side.hidden_states = tuple(
            torch.cat([state, torch.full((2, 3, 32), 1e3)], dim=1) for state in side.hidden_states
        )
    torch.testing.assert_close(objective(student, states, batch(length=9))["filtered"].values, loss)


def test_refused(tmp_path, tiny_reader, squad_file) -> None:
    settings = TrainingSettings(max_steps=2, keep_best=True, evaluate_every=1, progress=False)
    trainer = ReaderTrainer(tiny_reader(num_hidden_layers=1), settings=settings)
    with pytest.raises(
        DistilError, match="keep_best has no effect with task_filters, which does not change the student"
    ):
        trainer.distil(tiny_reader(seed=1), squad_file, TaskFilters(), squad_file)
    with pytest.raises(DistilError, match="first run the method task_filters"):
        TaskAwareLayers().objective(STUDENT, TEACHER)
    objective = filtered(tmp_path, layer_mapping="last").objective(STUDENT, TEACHER)
    with pytest.raises(DistilError, match="do not fit this student, teacher and layer_mapping"):
        objective.prepare()
    (tmp_path / "task_filters.safetensors").write_bytes(b"half of it")
    with pytest.raises(DistilError, match=r"task_filters\.safetensors cannot be read .*; train them again"):
        objective.prepare()
    with pytest.raises(DistilError, match=r"filters: .*task_filters\.safetensors cannot be read .*; train it again"):
        ReaderTrainer(tiny_reader(num_hidden_layers=2)).distil(
            tiny_reader(seed=1), squad_file, TaskAwareLayers(filters=str(tmp_path))
        )


def test_filters_of_another_teacher_are_refused(tmp_path, tiny_reader, squad_file) -> None:
    settings = TrainingSettings(max_steps=1, batch_size=4, progress=False)
    teacher, other = tiny_reader(seed=1), tiny_reader(seed=2)

    def trainer(name: str) -> ReaderTrainer:
        student = tiny_reader(num_hidden_layers=2)
        return ReaderTrainer(student, tmp_path / name, settings, cache_dir=tmp_path / "cache")

    trainer("filters").distil(teacher, squad_file, TaskFilters())
    method = TaskAwareLayers(filters=str(tmp_path / "filters"))
    with pytest.raises(DistilError, match=r"filters: .*task_filters\.safetensors was learnt with another teacher"):
        trainer("student").distil(other, squad_file, method)
    trainer("other").distil(teacher, squad_file, method)
    elsewhere = ReaderTrainer(tiny_reader(seed=3, num_hidden_layers=2), tmp_path / "third", settings)
    with pytest.raises(DistilError, match=r"task_filters\.safetensors was learnt with another student"):
        elsewhere.distil(teacher, squad_file, method)
    teacher.precision = "bf16"  # such as on another processor
    trainer("again").distil(teacher, squad_file, method)


def test_a_run_in_the_same_directory_removes_filters_that_are_not_its_own(tmp_path, tiny_reader, squad_file) -> None:
    settings = TrainingSettings(max_steps=1, batch_size=4, progress=False, overwrite=True)
    teacher, filters = tiny_reader(seed=1), tmp_path / "run" / "task_filters.safetensors"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.safetensors").write_bytes(b"a user's")

    def distil(method: Method) -> None:
        student = tiny_reader(num_hidden_layers=2)
        ReaderTrainer(student, tmp_path / "run", settings, cache_dir=tmp_path / "cache").distil(
            teacher, squad_file, method
        )

    for method, left in ((TaskFilters(), True), (TaskFilters(layer_mapping="last"), True), (PredictionLayer(), False)):
        distil(method)
        assert filters.exists() == left
        assert (tmp_path / "run" / "notes.safetensors").exists()
