"""Fingerprints of models: of configuration and weights, and of nothing else."""

from collections.abc import Callable
from pathlib import Path

import torch

from haystack_distill import Reader
from haystack_distill.utils.model_fingerprint import model_fingerprint, student_record


def test_name_and_location_do_not_count(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = tiny_reader()
    expected, record = model_fingerprint(reader.model), student_record(reader.model)
    loaded = Reader.load(reader.save(tmp_path / "reader"), window_settings=reader.window_settings, device="cpu")
    assert model_fingerprint(loaded.model) == expected
    assert student_record(loaded.model) == record
    loaded.model.config.name_or_path = "elsewhere"
    assert model_fingerprint(loaded.model) == expected


def test_weights_and_configuration_count(tiny_reader: Callable[..., Reader]) -> None:
    reader = tiny_reader()
    weights, configuration = reader.copy(), reader.copy()
    with torch.no_grad():
        weights.model.qa_outputs.bias[0] += 1e-6
    configuration.model.config.hidden_dropout_prob = 0.25
    models = (reader.model, weights.model, configuration.model)
    assert len({model_fingerprint(model) for model in models}) == 3
    one, other, third = map(student_record, models)
    assert one["weights"] != other["weights"]
    assert one["weights"] == third["weights"]
    assert one["config"] == other["config"] != third["config"]
    assert one["class"] == "BertForQuestionAnswering"
