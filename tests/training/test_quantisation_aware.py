"""quantisation_aware: a student that is trained for int8 loses less in it, and is saved as a plain reader."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering, MPNetConfig

from haystack_distill import DistilError, Reader, ReaderTrainer, students
from haystack_distill.export.exporting import ExportSettings, export_reader
from haystack_distill.models.fake_quantisation import Int8Embedding, Int8Linear
from haystack_distill.models.outputs import OutputRequest, run_model
from haystack_distill.objectives import IntermediateLayers
from haystack_distill.students.layers import dense_layers
from haystack_distill.training.adaptation import adapted
from haystack_distill.training.quantisation_aware import QuantisationAware
from haystack_distill.utils.model_inputs import model_inputs
from haystack_distill.utils.processor import adds_in_32_bits
from tests.conftest import CONTEXTS, QUESTIONS
from tests.export.test_exporting import SMALL, reader_of
from tests.training.helpers import other_family, settings

MakeReader = Callable[..., Reader]
# Elsewhere ONNX Runtime's sums overflow with weights of 8 bits, which is why its exports have 7.
BITS = [7, 8] if adds_in_32_bits() else [7]
BATCH = {"input_ids": torch.tensor([[2, 9, 8, 3, 7, 6, 3]]), "attention_mask": torch.ones(1, 7, dtype=torch.long)}


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "albert"])
def test_dense_layers_and_embeddings_round_inside_and_are_plain_afterwards(kind: str, tokenizer) -> None:
    model = other_family(kind, tokenizer).model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = run_model(model, BATCH).start_logits
    with adapted(model, QuantisationAware()):
        rounding = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
        assert rounding > set(dense_layers(model))  # the head too
        assert not any(type(module) in (nn.Linear, nn.Embedding) for module in model.modules())
        assert model.state_dict().keys() == before.keys()
        inside = run_model(model, BATCH).start_logits
    assert not torch.equal(inside, plain)
    torch.testing.assert_close(inside, plain, atol=0.1, rtol=0.1)
    assert not any(isinstance(module, (Int8Linear, Int8Embedding)) for module in model.modules())
    assert type(model.get_submodule(dense_layers(model)[0])) is nn.Linear
    assert torch.equal(run_model(model, BATCH).start_logits, plain)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "albert", "roberta", "mpnet"])
@pytest.mark.parametrize("bits", BITS)
def test_it_rounds_as_the_export_does(kind: str, bits: int, tokenizer, tmp_path: Path) -> None:
    """On another grid the errors would be others: as far from the export's as the exact logits are."""
    pytest.importorskip("onnxruntime")
    if kind == "mpnet":
        reader = reader_of(MPNetConfig(**SMALL, vocab_size=len(tokenizer)), tokenizer)
    else:
        reader = other_family(kind, tokenizer)
    torch.manual_seed(0)
    for weight in reader.model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    export_reader(reader, tmp_path / "reader", ExportSettings(reduce_range=bits == 7))
    windows = reader.cut_pairs([(question, CONTEXTS[place]) for question, place, _ in QUESTIONS])
    exported = Reader.load(tmp_path / "reader", backend="onnx-int8", window_settings=reader.window_settings)
    batch = model_inputs(windows.collate(windows.__getitems__(range(len(windows)))))
    mask = batch["attention_mask"].bool()
    assert not mask.all()  # padding has no part in a scale

    def logits(forward: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, ...]]) -> torch.Tensor:
        return torch.cat([one[mask] for one in forward(batch)])

    plain, int8 = logits(reader.forward), logits(exported.forward)
    with adapted(reader.model, QuantisationAware(bits)):
        rounded = logits(reader.forward)
    assert (rounded - int8).square().mean() < 0.2 * (plain - int8).square().mean()
    assert torch.equal(logits(reader.forward), plain)


def test_hooks_see_the_rounding_queries(tiny_reader: MakeReader) -> None:
    model = tiny_reader().model
    request = OutputRequest(attention_scores=(1,))
    plain = run_model(model, BATCH, request).attention_scores[1]
    with adapted(model, QuantisationAware()):
        assert not torch.equal(run_model(model, BATCH, request).attention_scores[1], plain)


def test_a_run_saves_a_plain_reader(tiny_reader: MakeReader, data: Path, tmp_path: Path) -> None:
    teacher = tiny_reader()
    student = students.from_teacher(teacher, layers=2)
    trainer = ReaderTrainer(student, tmp_path / "run", settings(max_steps=3, learning_rate=1e-2))
    trainer.distil(teacher, data, IntermediateLayers(), adaptation=QuantisationAware())
    loaded, report = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**BATCH).start_logits, student.model(**BATCH).start_logits)
    other = students.from_teacher(teacher, layers=2)
    ReaderTrainer(other, None, settings(max_steps=3, learning_rate=1e-2)).distil(teacher, data, IntermediateLayers())
    learnt = [reader.model.state_dict()["bert.encoder.layer.0.output.dense.weight"] for reader in (student, other)]
    assert not torch.equal(*learnt)


def test_what_does_not_fit(tiny_reader: MakeReader) -> None:
    for wrong in (6, 9, True, "8"):
        with pytest.raises(DistilError, match="weight_bits must be 7 or 8"):
            QuantisationAware(wrong)  # type: ignore[arg-type]
    recurrent = students.bilstm(tiny_reader(), units=8, embedding_size=8)
    with pytest.raises(DistilError, match="no dense layers, so quantisation_aware has no effect; choose"):
        QuantisationAware().prepare(recurrent.model)
