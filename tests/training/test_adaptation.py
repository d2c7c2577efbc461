"""Adaptations: which weights learn, and that all are trainable again afterwards."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AlbertConfig, AlbertForQuestionAnswering

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.objectives import AttentionRelations, FeatureMaps, IntermediateLayers, Representation
from haystack_distill.training.adaptation import (
    ADAPTATIONS,
    Adaptation,
    AllWeights,
    Biases,
    Head,
    LastLayers,
    adapted,
)
from haystack_distill.training.gradual_unfreezing import GradualUnfreezing

LORA = ["rank", "alpha", "target", "save_only_trained"]
GRADUAL_UNFREEZING = ["layers_per_phase", "phase_shares", "phase_patience"]
MakeReader = Callable[..., Reader]


def learning(model, adaptation) -> set[str]:
    with adapted(model, adaptation):
        found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.requires_grad for parameter in model.parameters())
    return found


def test_which_weights_learn(tiny_reader: MakeReader) -> None:
    model = tiny_reader().model
    names = {name for name, _ in model.named_parameters()}
    head = {name for name in names if name.startswith("qa_outputs")}
    assert learning(model, AllWeights()) == names
    last = {name for name in names if ".layer.2." in name or ".layer.3." in name}
    assert learning(model, LastLayers(2)) == head | last
    below = {name for name in names if ".layer.0." in name or ".layer.1." in name}
    assert learning(model, LastLayers(2, embeddings=True)) == names - below
    assert learning(model, Head()) == head
    assert learning(model, Biases()) == head | {name for name in names if name.endswith("bias")}
    recurrent = students.bilstm(tiny_reader(), embedding_size=8, units=4).model
    inside = {name.rpartition(".")[2] for name in learning(recurrent, Biases()) if name.startswith("bilstm.")}
    assert inside == {"bias", "bias_ih_l0", "bias_hh_l0", "bias_ih_l0_reverse", "bias_hh_l0_reverse"}


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_only_those_weights_change_in_a_run(
    name: str, tiny_reader: MakeReader, squad_file: Path, tmp_path: Path
) -> None:
    student = tiny_reader()
    before = {key: value.clone() for key, value in student.model.state_dict().items()}
    adaptation = ADAPTATIONS[name]()
    expected = {re.sub(r"\.lora_[AB]\.default", "", key) for key in learning(student.copy().model, adaptation)}
    settings = TrainingSettings(max_steps=2, batch_size=4, learning_rate=1e-2, precision="fp32", progress=False)
    trainer = ReaderTrainer(student, tmp_path / "run", settings, cache_dir=tmp_path / "cache")
    trainer.distil(None, squad_file, "labels", adaptation=adaptation)
    after = student.model.state_dict()
    assert {key for key in before if not before[key].equal(after[key])} <= expected
    assert any(not before[key].equal(after[key]) for key in expected & before.keys())
    other = Biases() if name != "biases" else AllWeights()
    resumed = TrainingSettings(**{**vars(settings), "resume": True})
    again = ReaderTrainer(tiny_reader(), tmp_path / "run", resumed, cache_dir=tmp_path / "cache")
    with pytest.raises(DistilError, match=r"its adaptation"):
        again.distil(None, squad_file, "labels", adaptation=other)


def test_options_are_read_without_torch() -> None:
    code = (
        "import sys; from haystack_distill.training.adaptation import ADAPTATIONS; "
        "print(*[option.name for name in ADAPTATIONS for option in ADAPTATIONS.options(name)], 'torch' in sys.modules)"
    )
    present = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert present == [
        "n_layers",
        "embeddings",
        *["save_only_trained"] * 3,
        "adapter_size",
        *LORA,
        *GRADUAL_UNFREEZING,
        "weight_bits",
        "False",
    ]
    assert ADAPTATIONS.title("all") == "All weights are trained."
    with pytest.raises(DistilError, match="unknown adaptation 'bias'; did you mean 'biases'"):
        ADAPTATIONS["bias"]


def test_bad_adaptations(tiny_reader: MakeReader, squad_file: Path) -> None:
    for n_layers in (0, True, "2"):
        with pytest.raises(DistilError, match="n_layers must be"):
            LastLayers(n_layers)
    with pytest.raises(DistilError, match="n_layers is 9, but the student has 4 layers"):
        ReaderTrainer(tiny_reader()).distil(None, squad_file, "labels", adaptation=LastLayers(9))
    with pytest.raises(DistilError, match="embeddings must be"):
        LastLayers(embeddings=1)
    with pytest.raises(DistilError, match="adaptation must be a Adaptation"):
        ReaderTrainer(tiny_reader()).distil(None, squad_file, "labels", adaptation="biases")

    class Nothing(Adaptation):
        def prepare(self, model) -> None:
            model.requires_grad_(False)

    student = tiny_reader()
    with (
        pytest.raises(DistilError, match=r"'.*Nothing' freezes every weight"),
        adapted(student.model, Nothing()),
    ):
        pass
    assert all(parameter.requires_grad for parameter in student.model.parameters())
    assert ADAPTATIONS.name_of(LastLayers()) == "last_layers"


def test_a_cut_student_keeps_frozen_layers_of_its_teacher(
    tiny_reader: MakeReader, squad_file: Path, tmp_path: Path
) -> None:
    teacher = tiny_reader()
    student = students.from_teacher(teacher, layers=2)
    settings = TrainingSettings(max_steps=3, batch_size=4, learning_rate=1e-2, precision="fp32", progress=False)
    trainer = ReaderTrainer(student, None, settings, cache_dir=tmp_path)
    trainer.distil(teacher, squad_file, "intermediate_layers", adaptation=LastLayers(1))
    own, theirs = student.model.bert.encoder.layer[0], teacher.model.bert.encoder.layer[0]
    assert own.output.dense.weight.equal(theirs.output.dense.weight)
    assert not student.model.bert.encoder.layer[1].output.dense.weight.equal(
        teacher.model.bert.encoder.layer[2].output.dense.weight
    )


def test_an_encoder_alone_has_no_head(tiny_reader: MakeReader) -> None:
    encoder = tiny_reader().model.base_model
    names = {name for name, _ in encoder.named_parameters()}
    assert learning(encoder, Biases()) == {name for name in names if name.endswith("bias")}
    assert learning(encoder, LastLayers(1)) == {name for name in names if "layer.3." in name}
    with pytest.raises(DistilError, match="'head' freezes every weight of the student"):
        learning(encoder, Head())


def test_layers_that_share_their_weights_are_not_trained_alone() -> None:
    config = AlbertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        embedding_size=8,
    )
    model = AlbertForQuestionAnswering(config)
    with pytest.raises(DistilError, match="albert model share their weights"), adapted(model, LastLayers(1)):
        pass


def test_a_run_whose_weights_are_all_frozen_for_its_loss(tiny_reader: MakeReader, squad_file: Path) -> None:
    teacher = tiny_reader()
    student = students.from_teacher(teacher, layers=2)
    method = IntermediateLayers(layer_mapping="skip", attention_loss_weight=0)
    with pytest.raises(
        DistilError, match="no trained weight of the student changes the loss at step 1: the adaptation"
    ):
        ReaderTrainer(student).distil(teacher, squad_file, method, adaptation=LastLayers(1))


@pytest.mark.parametrize(
    ("method", "adaptation", "message"),
    [
        (Representation(), Head(), "head trains the head alone, and representation compares no answers"),
        (FeatureMaps(), GradualUnfreezing(2), "gradual_unfreezing trains the head first and alone, and feature_maps"),
        (
            AttentionRelations(student_layer=1),
            LastLayers(1),
            "last_layers trains layer 2 and above, and attention_relations compares layer 1 and none above it",
        ),
    ],
)
def test_a_run_without_effect_is_refused_before_it_begins(
    tiny_reader: MakeReader, squad_file: Path, method, adaptation, message
) -> None:
    teacher = tiny_reader()
    trainer = ReaderTrainer(students.from_teacher(teacher, layers=2))
    for call in (trainer.check, trainer.distil):
        with pytest.raises(DistilError, match=message):
            call(teacher, squad_file, method, adaptation=adaptation)


def test_a_projection_that_learns_is_not_the_student(tiny_reader: MakeReader, squad_file: Path) -> None:
    teacher, narrow = tiny_reader(), tiny_reader(hidden_size=16, seed=3)
    method = FeatureMaps(student_layers=[1], attention_loss_weight=0)
    with pytest.raises(DistilError, match="no trained weight of the student changes the loss at step 1"):
        ReaderTrainer(narrow).distil(teacher, squad_file, method, adaptation=LastLayers(1))


def test_biases_of_a_model_without_any(tiny_reader: MakeReader) -> None:
    model = tiny_reader().model
    for module in model.base_model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(DistilError, match="encoder of a bert model has no biases, so the head alone"):
        learning(model, Biases())


def test_what_a_method_trains_of_its_own_may_learn_first(tiny_reader: MakeReader, squad_file: Path) -> None:
    teacher, student = tiny_reader(), tiny_reader(num_hidden_layers=2, seed=3)
    settings = TrainingSettings(max_steps=4, batch_size=4, learning_rate=1e-2, precision="fp32", progress=False)
    before = [parameter.clone() for parameter in student.model.base_model.parameters()]
    trainer = ReaderTrainer(student, None, settings)
    trainer.distil(teacher, squad_file, Representation(), adaptation=GradualUnfreezing(2))
    assert not all(map(torch.equal, before, student.model.base_model.parameters()))
