"""Heads of their own for sources of data: which windows train which head, how they are saved, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering

from haystack_distill import DistilError, Reader, ReaderTrainer, RunResult
from haystack_distill.data.squad.load import load_examples
from haystack_distill.models.heads import Heads, choosing
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives import LossTerm, Objective, PredictionLayer
from haystack_distill.teachers import Source, Sources
from haystack_distill.training.adaptation import Adaptation, Head
from haystack_distill.training.adapters import Adapters
from haystack_distill.training.gradual_unfreezing import GradualUnfreezing
from haystack_distill.training.loop import StudentAndObjective, _LoopTrainer
from haystack_distill.utils.model_inputs import model_inputs
from tests.training.helpers import Killed, furthest, kill_at_step, same, settings, weights_of, with_gradients

HEADS = ("law", None, "wiki")


def inputs_of(reader: Reader, source: Path) -> dict[str, torch.Tensor]:
    """The model inputs of the first four windows of a file."""
    windows = reader.cut(load_examples(source))
    return model_inputs(windows.collate(windows.__getitems__(range(4))))


def different_heads(model: nn.Module) -> Heads:
    """Two heads, the second one with other weights than the first."""
    heads = Heads(model, (None, "law"))
    nn.init.normal_(heads.all[1].weight)
    nn.init.normal_(heads.all[1].bias)
    return heads


def test_each_window_is_answered_as_by_a_model_with_its_head_alone(tiny_reader: Callable, squad_file: Path) -> None:
    reader = tiny_reader()
    inputs = inputs_of(reader, squad_file)
    heads = different_heads(reader.model)
    rows = torch.tensor([1, 0, 0, 1])
    with torch.no_grad():
        with heads.inserted(reader.model):
            first = reader.model(**inputs).start_logits
            with choosing(reader.model, rows):
                mixed = reader.model(**inputs)
        assert reader.model.qa_outputs is heads.all[0]
        alone = [reader.model(**inputs), heads.readers(reader)["law"].model(**inputs)]
    assert torch.equal(first, alone[0].start_logits)
    assert not torch.allclose(alone[0].start_logits, alone[1].start_logits)
    for row, number in enumerate(rows):
        torch.testing.assert_close(mixed.start_logits[row], alone[number].start_logits[row])
        torch.testing.assert_close(mixed.end_logits[row], alone[number].end_logits[row])


def test_windows_train_their_own_head_and_the_encoder(tiny_reader: Callable, squad_file: Path) -> None:
    reader = tiny_reader()
    inputs, rows = inputs_of(reader, squad_file), torch.tensor([1, 0, 0, 1])
    model, heads = reader.model, different_heads(reader.model)
    with heads.inserted(model), choosing(model, rows):
        model(**inputs).start_logits[rows == 1].square().sum().backward()
    assert heads.all[1].weight.grad.abs().max() > 0
    assert heads.all[0].weight.grad.abs().max() == 0
    own = {name: parameter.grad.clone() for name, parameter in model.base_model.named_parameters()}
    assert all(grad.abs().max() > 0 for name, grad in own.items() if "LayerNorm" in name)

    # The gradients are those of a model with that head alone.
    model.zero_grad()
    alone = heads.readers(reader)["law"].model
    expected = heads.all[1].weight.grad.clone()
    heads.zero_grad()
    alone(**inputs).start_logits[rows == 1].square().sum().backward()
    torch.testing.assert_close(heads.all[1].weight.grad, expected)
    for name, parameter in model.base_model.named_parameters():
        torch.testing.assert_close(parameter.grad, own[name])


def run(
    make: Callable,
    squad_file: Path,
    directory: Path | None,
    heads: tuple[str | None, ...] = HEADS,
    *,
    adaptation: Adaptation | None = None,
    student: Reader | None = None,
    dev_data: Path | None = None,
    **changed,
) -> tuple[Reader, RunResult]:
    """A run of six steps with a source for each head, of which the second has no teacher."""
    own, teacher = make()
    student = student or own
    sources = [Source(squad_file, None if number == 1 else teacher, head) for number, head in enumerate(heads)]
    trainer = ReaderTrainer(student, directory, settings(n_epochs=1, **changed))
    return student, trainer.distil(None, Sources(sources), PredictionLayer(), dev_data, adaptation=adaptation)


def test_a_run_trains_each_head_on_its_sources(
    pair: Callable, squad_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    forward = StudentAndObjective.forward

    def watching(self, batch, teacher=None):
        parts = trainers[-1].data.mixture.part_of[batch["window"].numpy()]
        names = [self.student.qa_outputs.names[number] for number in batch["head"]]
        assert names == [("law", "wiki", "law")[part] for part in parts]
        checked.extend(names)
        return forward(self, batch, teacher)

    trainers = []
    initialise = _LoopTrainer.__init__

    def noting(self, *arguments, **keywords):
        trainers.append(self)
        initialise(self, *arguments, **keywords)

    monkeypatch.setattr(StudentAndObjective, "forward", watching)
    monkeypatch.setattr(_LoopTrainer, "__init__", noting)
    student, result = run(pair, squad_file, None, ("law", "wiki", "law"))
    assert set(checked) == {"law", "wiki"}
    assert list(result.heads) == ["law", "wiki"]  # without a shared one, the first source's is the student's
    law, wiki = (result.heads[name].model.qa_outputs.weight for name in ("law", "wiki"))
    assert student.model.qa_outputs.weight is law
    assert not torch.equal(law, wiki)
    assert result.trained == sum(one.numel() for one in student.model.parameters()) + 2 * 16 + 2


def test_each_head_is_saved_as_a_plain_reader(pair: Callable, squad_file: Path, tmp_path: Path) -> None:
    student, result = run(pair, squad_file, tmp_path / "run", dev_data=squad_file, keep_best=True, evaluate_every=2)
    assert result.metrics == Reader.load(tmp_path / "run", **reading(student)).evaluate(squad_file, progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()
    record = json.loads((tmp_path / "run" / "haystack_distill.json").read_text())
    assert record["sources"]["heads"] == ["law", None, "wiki"]
    assert list(record["weights"]) == [
        "heads/law/model.safetensors",
        "heads/wiki/model.safetensors",
        "model.safetensors",
    ]
    files = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()} - {"haystack_distill.json"}
    names = {"law": tmp_path / "run" / "heads" / "law", "wiki": tmp_path / "run" / "heads" / "wiki"}
    for name, directory in names.items():
        assert {path.name for path in directory.iterdir()} == files
        found, loading = AutoModelForQuestionAnswering.from_pretrained(directory, output_loading_info=True)
        assert not any(loading.values())
        loaded = Reader.load(directory, **reading(student))
        assert same(weights_of(loaded), weights_of(result.heads[name]))
        assert same(dict(found.state_dict()), weights_of(loaded))
        inputs = inputs_of(student, squad_file)
        for one, other in zip(loaded.forward(inputs), result.heads[name].forward(inputs), strict=True):
            assert torch.equal(one, other)
    main = weights_of(Reader.load(tmp_path / "run", **reading(student)))
    assert same(main, weights_of(student))
    law = weights_of(result.heads["law"])
    assert {name for name, weight in main.items() if not torch.equal(weight, law[name])} == {
        "qa_outputs.weight",
        "qa_outputs.bias",
    }


def reading(student: Reader) -> dict:
    return {name: getattr(student, name) for name in ("window_settings", "device", "precision")}


def test_a_run_with_heads_resumes_bit_for_bit(
    pair: Callable, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"checkpoint_every": 1, "head_learning_rate": 1e-2, "layer_decay": 0.5}
    whole, result = run(pair, squad_file, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        kill_at_step(patch, 3)
        with pytest.raises(Killed):
            run(pair, squad_file, tmp_path / "cut", **options)
    with pytest.raises(DistilError, match=r"sources\.heads"):
        run(pair, squad_file, tmp_path / "cut", (None, None, "wiki"), resume=True, **options)
    for _ in ("resumed", "finished"):  # the second time its result is loaded
        student, again = run(pair, squad_file, tmp_path / "cut", resume=True, **options)
        assert same(weights_of(student), weights_of(whole))
        assert again.heads.keys() == {"law", "wiki"}
        for name, reader in again.heads.items():
            assert same(weights_of(reader), weights_of(result.heads[name]))
    weights = tmp_path / "cut" / "heads" / "law" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DistilError, match="not those that the finished run saved"):
        run(pair, squad_file, tmp_path / "cut", resume=True, **options)


def test_what_is_in_the_way_of_heads(pair: Callable, squad_file: Path, tmp_path: Path) -> None:
    theirs = pair()[0].save(tmp_path / "run" / "heads" / "law")
    with pytest.raises(DistilError, match=r"heads/law holds a config.json, which training would replace"):
        run(pair, squad_file, tmp_path / "run", max_steps=1)
    assert [path for path in (tmp_path / "run").iterdir() if path.name != "checkpoints"] == [theirs.parent]
    run(pair, squad_file, tmp_path / "run", max_steps=1, overwrite=True)
    mine = tmp_path / "run" / "heads" / "mine"
    mine.mkdir()
    run(pair, squad_file, tmp_path / "run", (None, None, "law"), max_steps=1, overwrite=True)
    assert {path.name for path in mine.parent.iterdir()} == {"law", "mine"}  # no more "wiki"


def test_accumulated_steps_are_the_same(pair: Callable, squad_file: Path) -> None:
    whole, parts = (
        run(pair, squad_file, None, dropout=0.0, batch_size=size, gradient_accumulation_steps=4 // size)[1]
        for size in (4, 2)
    )
    for name, reader in whole.heads.items():
        others = weights_of(parts.heads[name])
        assert furthest(with_gradients(weights_of(reader)), with_gradients(others)) < 1e-4


@pytest.mark.parametrize("adaptation", [Head(save_only_trained=True), Adapters(4), GradualUnfreezing()], ids=str)
def test_adaptations_train_all_heads(adaptation: Adaptation, pair: Callable, squad_file: Path, tmp_path: Path) -> None:
    base = pair()[0].save(tmp_path / "base")
    student = Reader.load(base, **reading(pair()[0]))
    before = weights_of(student)
    _, result = run(pair, squad_file, tmp_path / "run", adaptation=adaptation, student=student)
    for name, reader in {"": student, **result.heads}.items():
        own = weights_of(reader)
        assert not torch.equal(own["qa_outputs.weight"], before["qa_outputs.weight"])
        directory = tmp_path / "run" / "heads" / name if name else tmp_path / "run"
        assert same(weights_of(Reader.load(directory, **reading(student))), own)
        if isinstance(adaptation, Head):
            assert {key for key in own if not torch.equal(own[key], before[key])} == {
                "qa_outputs.weight",
                "qa_outputs.bias",
            }


class LengthOnly(Objective):
    """A loss of the encoder alone."""

    student_request = OutputRequest(hidden_states=True)

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"labels": 1.0}

    def forward(self, student: ModelOutputs, teacher, batch) -> dict[str, LossTerm]:
        assert student.hidden_states is not None
        return {"labels": LossTerm(student.hidden_states[-1].square().mean(dim=(1, 2)), self.masks(batch)["labels"])}


def test_what_is_refused(pair: Callable, squad_file: Path) -> None:
    student, teacher = pair()
    for name in ("", "../law", "law/wiki", ".law", "law.", 3):
        with pytest.raises(DistilError, match="source 2: head must be letters, digits"):
            Sources([Source(squad_file), Source(squad_file, teacher, name)])  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="all sources have the head 'law', which has no effect"):
        Sources([Source(squad_file, teacher, "law"), Source(squad_file, None, "law")])
    both = Sources([Source(squad_file, None, "law"), Source(squad_file)])
    distil = ReaderTrainer(student, None, settings()).distil
    with pytest.raises(DistilError, match="does not train the student's head"):
        distil(None, both, LengthOnly())
    student.model.qa_outputs = nn.Sequential(student.model.qa_outputs)
    with pytest.raises(DistilError, match="the head of BertForQuestionAnswering is not one dense layer"):
        distil(None, both, "labels")


def test_a_run_that_was_killed_while_it_saved_is_done_again(
    pair: Callable, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Reader.save

    def dying(self: Reader, directory: Path, **keywords: bool) -> Path:
        if directory.name == "wiki":
            raise Killed
        return save(self, directory, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "save", dying)
        with pytest.raises(Killed):
            run(pair, squad_file, tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(DistilError, match=r"heads/law holds a config.json, .* set overwrite=True"):
        run(pair, squad_file, tmp_path / "run", max_steps=1)
    run(pair, squad_file, tmp_path / "run", max_steps=1, resume=True)
    assert (tmp_path / "run" / "heads" / "wiki" / "model.safetensors").exists()
