"""EnsembleTeacher: the average of probabilities, whatever tokenizers and windows its teachers have."""

import functools
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.objectives import IntermediateLayers, PredictionLayer
from haystack_distill.teachers import CachedTeacher, EnsembleTeacher, LiveTeacher

MakeReader = Callable[..., Reader]
LOGITS = OutputRequest(logits=True)


def prepared(readers, squad_file: Path, tmp_path: Path, weights=None, average="probabilities"):
    """An ensemble, a batch of the first reader's windows with its cached outputs in it, and that reader's windows."""
    examples = load_examples(squad_file, cache_dir=tmp_path)
    windows = readers[0].cut(examples, cache_dir=tmp_path)
    ensemble = EnsembleTeacher([CachedTeacher(reader) for reader in readers], weights, average=average)
    ensemble.check(readers[0], LOGITS)
    ensemble.prepare(examples, windows, cache_dir=tmp_path, progress=False)
    batch = windows.collate(windows.__getitems__(range(len(windows))))
    return ensemble, batch | ensemble.cached(batch)


def test_averages_are_of_probabilities(tiny_reader: MakeReader, squad_file: Path, tmp_path: Path) -> None:
    readers = [tiny_reader(seed=1), tiny_reader(seed=2)]
    ensemble, batch = prepared(readers, squad_file, tmp_path, [3.0, 1.0])
    assert ensemble.weights == [0.75, 0.25]
    found = ensemble.outputs(batch, LOGITS)
    mask = batch["context_mask"]
    alone = [teacher.cached(batch) for teacher in ensemble.teachers]
    for side in ("start", "end"):
        expected = torch.zeros(mask.shape)
        for weight, number in ((0.75, 1), (0.25, 2)):
            logits = alone[number - 1][f"teacher_{side}_logits"].masked_fill(~mask, float("-inf"))
            expected += weight * logits.softmax(dim=1)
        averaged = getattr(found, f"{side}_logits")
        torch.testing.assert_close(averaged.softmax(dim=1), expected)
        assert averaged[~mask].isneginf().all()
        assert torch.equal(averaged, batch[f"teacher_{side}_logits"])  # for objectives that read it in `masks`


def test_equal_teachers_are_as_one(tiny_reader: MakeReader, squad_file: Path, tmp_path: Path) -> None:
    reader = tiny_reader(seed=1)
    ensemble, batch = prepared([reader, reader.copy()], squad_file, tmp_path)
    mask = batch["context_mask"]
    alone = ensemble.teachers[0].cached(batch)["teacher_start_logits"].masked_fill(~mask, float("-inf")).softmax(dim=1)
    torch.testing.assert_close(ensemble.outputs(batch, LOGITS).start_logits.softmax(dim=1), alone)


def test_averages_of_logits(tiny_reader: MakeReader, squad_file: Path, tmp_path: Path) -> None:
    readers = [tiny_reader(seed=1), tiny_reader(seed=2)]
    ensemble, batch = prepared(readers, squad_file, tmp_path, [3.0, 1.0], "logits")
    first, second = (teacher.cached(batch)["teacher_start_logits"] for teacher in ensemble.teachers)
    mask = batch["context_mask"]
    found = ensemble.outputs(batch, LOGITS).start_logits
    torch.testing.assert_close(found[mask], (0.75 * first + 0.25 * second)[mask])
    assert found[~mask].isneginf().all()
    assert ensemble.fingerprint["average"] == "logits"
    others = [readers[0], tiny_reader(seed=2, window_settings=WindowSettings(40, 12, 16))]
    with pytest.raises(DistilError, match='average="logits" needs teachers with the same tokenizer and windows'):
        prepared(others, squad_file, tmp_path, average="logits")
    with pytest.raises(DistilError, match="average must be"):
        EnsembleTeacher(ensemble.teachers, average="words")  # type: ignore[arg-type]


def test_a_live_teacher_beside_a_cached_one(tiny_reader: MakeReader, squad_file: Path, tmp_path: Path) -> None:
    readers = [tiny_reader(seed=1), tiny_reader(seed=2)]
    cached, batch = prepared(readers, squad_file, tmp_path)
    mixed = EnsembleTeacher([cached.teachers[0], LiveTeacher(readers[1])])
    assert not mixed.caches_logits
    own = {name: value for name, value in batch.items() if not name.startswith("teacher_")}
    with mixed.active():
        found = mixed.outputs(own | mixed.cached(own), LOGITS)
    expected = cached.outputs(batch, LOGITS)
    torch.testing.assert_close(found.start_logits, expected.start_logits, rtol=1e-4, atol=1e-4)


def test_readers_that_are_loaded_one_at_a_time(tiny_reader: MakeReader, squad_file: Path, tmp_path: Path) -> None:
    alive: weakref.WeakSet = weakref.WeakSet()
    loads = []

    def load(seed: int) -> Reader:
        assert not alive, "the reader before this one is still in memory"
        reader = tiny_reader(seed=seed)
        alive.add(reader.model)
        loads.append(seed)
        return reader

    ensemble = EnsembleTeacher([CachedTeacher(functools.partial(load, seed)) for seed in (1, 2)])
    readers = [tiny_reader(seed=1), tiny_reader(seed=2)]
    whole, batch = prepared(readers, squad_file, tmp_path / "whole")
    student = readers[0]
    settings = TrainingSettings(max_steps=2, batch_size=4, precision="fp32", progress=False)
    for source in (ensemble, ensemble):
        trainer = ReaderTrainer(student.copy(), None, settings, cache_dir=tmp_path)
        trainer.distil(source, squad_file, PredictionLayer())
    assert not alive
    assert loads == [1, 2, 1, 2]  # for what they are and for their outputs, which the second run has in the cache
    assert ensemble.fingerprint == whole.fingerprint
    own = {name: value for name, value in batch.items() if not name.startswith("teacher_")}
    assert torch.equal(ensemble.cached(own)["teacher_end_logits"], batch["teacher_end_logits"])


def test_a_student_learns_from_two_teachers_with_different_windows(
    tiny_reader: MakeReader, squad_file: Path, tmp_path: Path
) -> None:
    others = WindowSettings(max_seq_len=40, doc_stride=12, max_query_length=16)
    teachers = [tiny_reader(seed=1), tiny_reader(seed=2, window_settings=others)]
    settings = TrainingSettings(max_steps=20, batch_size=4, learning_rate=3e-3, precision="fp32", progress=False)
    student = students.from_teacher(teachers[0], layers=2)
    trainer = ReaderTrainer(student, tmp_path / "run", settings, cache_dir=tmp_path / "cache")
    result = trainer.distil(teachers, squad_file, PredictionLayer(distillation_loss_weight=1.0))
    losses = [line["loss_distillation"] for line in result.history if "loss_distillation" in line]
    assert losses[-1] < losses[0]


def test_more_than_logits_is_refused(tiny_reader: MakeReader, squad_file: Path) -> None:
    teachers = [tiny_reader(seed=1), tiny_reader(seed=2)]
    student = students.from_teacher(teachers[0], layers=2)
    with pytest.raises(DistilError, match="only the predictions of several teachers"):
        ReaderTrainer(student).distil(
            teachers, squad_file, PredictionLayer() + IntermediateLayers(layer_mapping=[1, 2])
        )


def test_bad_ensembles(tiny_reader: MakeReader) -> None:
    teacher = CachedTeacher(tiny_reader())
    with pytest.raises(DistilError, match="needs two or more teachers, not 1"):
        EnsembleTeacher([teacher])
    with pytest.raises(DistilError, match=r"give each reader as CachedTeacher\(reader\)"):
        EnsembleTeacher([teacher, tiny_reader()])
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(DistilError, match="needs 2 weights above 0"):
            EnsembleTeacher([teacher, teacher], weights)
