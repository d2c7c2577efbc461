"""Export for OpenVINO: the model's answers in a layout that others load, int8 recipes, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import transformers
from transformers import BertTokenizerFast, DebertaV2Config, MPNetConfig

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.export.exporting import ExportSettings, calibration_inputs, export_reader
from haystack_distill.export.openvino import Quantisation, node_names, quantise
from haystack_distill.models.backends.exported import FILES
from haystack_distill.models.backends.openvino_runtime import OpenVinoModel
from haystack_distill.reporting.inspection import describe
from haystack_distill.training.adapters import Adapters
from tests.conftest import make_tiny_reader
from tests.export.test_exporting import PAIRS, SMALL, reader_of, require_same_answers

pytest.importorskip("openvino")

WINDOWS = WindowSettings(max_seq_len=48, doc_stride=16, max_query_length=16)
QUICK = TrainingSettings(max_steps=2, batch_size=4, learning_rate=1e-2, precision="fp32", progress=False)
FLOAT = ExportSettings(int8="none", runtime="openvino")


@pytest.fixture(scope="module")
def exported(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Path, dict]:
    """A tiny reader, where it was exported to for both runtimes, and the record."""
    reader = make_tiny_reader(tokenizer, seed=5, initializer_range=0.3, num_hidden_layers=2)
    directory = tmp_path_factory.mktemp("exported") / "reader"
    return reader, directory, export_reader(reader, directory, ExportSettings(runtime="all"))


def loaded(directory: Path, backend: str = "openvino") -> Reader:
    return Reader.load(directory, backend=backend, precision="fp32", window_settings=WINDOWS)


def test_it_gives_the_models_answers(exported: tuple[Reader, Path, dict]) -> None:
    reader, directory, record = exported
    for pairs in (PAIRS, PAIRS[:1], PAIRS[-1:]):  # other batches and lengths than it was exported with
        require_same_answers(loaded(directory), reader, pairs)
    assert set(record["backends"]) == {"torch", *FILES}
    assert record["backends"]["openvino"]["largest_difference"] < 1e-4
    assert record["backends"]["openvino-int8"]["megabytes"] < record["backends"]["openvino"]["megabytes"]
    assert len(loaded(directory, "openvino-int8").answer_batch(PAIRS)) == len(PAIRS)


def test_the_directory_records_it_and_stays_a_plain_model(exported: tuple[Reader, Path, dict]) -> None:
    reader, directory, record = exported
    for folder in ("onnx", "openvino"):
        assert json.loads((directory / folder / "export.json").read_text()) == json.loads(json.dumps(record))
    assert {"openvino", "nncf", "onnxruntime"} <= set(record["versions"])
    assert set(describe(directory)["exported"]) == set(record["backends"])
    require_same_answers(Reader.load(directory, device="cpu", precision="fp32", window_settings=WINDOWS), reader, PAIRS)


def test_saving_other_weights_removes_it(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    export_reader(tiny_reader(num_hidden_layers=1), tmp_path, FLOAT)
    (tmp_path / "openvino" / "notes.txt").touch()
    tiny_reader(seed=1).save(tmp_path)
    assert [file.name for file in (tmp_path / "openvino").iterdir()] == ["notes.txt"]


def test_optimum_loads_it(exported: tuple[Reader, Path, dict]) -> None:
    """Where optimum-intel is installed; its versions need other versions of transformers than some that we run with."""
    optimum = pytest.importorskip("optimum.intel")
    try:
        load = optimum.OVModelForQuestionAnswering.from_pretrained
    except RuntimeError as error:  # what it raises where it finds other versions of torch or NNCF than it needs
        pytest.skip(str(error))
    reader, directory, _ = exported
    for file in ("openvino_model.xml", "openvino_model_int8.xml"):
        settings = {"subfolder": "openvino", "file_name": file, "ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
        model = load(directory, **settings)
        inputs = reader.tokenizer(*PAIRS[0], return_tensors="pt")
        found, expected = model(**inputs), reader.model(**inputs)
        worst = (found.start_logits - expected.start_logits).abs().max()
        assert worst < (0.5 if "int8" in file else 1e-4)


def test_other_architectures(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    reader = reader_of(MPNetConfig(**SMALL, vocab_size=len(tokenizer), initializer_range=0.3), tokenizer)
    export_reader(reader, tmp_path / "mpnet", FLOAT)
    require_same_answers(loaded(tmp_path / "mpnet"), reader, PAIRS)
    kinds = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    reader = reader_of(DebertaV2Config(**SMALL, vocab_size=len(tokenizer), **kinds), tokenizer)
    if transformers.__version__ >= "5":
        export_reader(reader, tmp_path / "deberta", FLOAT)
        require_same_answers(loaded(tmp_path / "deberta"), reader, PAIRS)
        return
    with pytest.raises(DistilError, match=r"OpenVINO cannot run DebertaV2ForQuestionAnswering .*for another runtime"):
        export_reader(reader, tmp_path / "deberta", FLOAT)
    assert not (tmp_path / "deberta").exists()


def test_adapters(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> None:
    base = tiny_reader(seed=5, initializer_range=0.3, num_hidden_layers=1).save(tmp_path / "base")
    student = loaded(base, "torch")
    adaptation = Adapters(adapter_size=4)
    ReaderTrainer(student, tmp_path / "run", QUICK).distil(None, squad_file, "labels", adaptation=adaptation)
    export_reader(loaded(tmp_path / "run", "torch"), tmp_path / "adapted", FLOAT)
    require_same_answers(loaded(tmp_path / "adapted"), student, PAIRS)


def test_int8_recipes(exported: tuple[Reader, Path, dict], squad_file: Path, tmp_path: Path) -> None:
    reader, directory, _ = exported
    source = directory / FILES["openvino"][0]
    from haystack_distill.data.squad.load import load_examples

    inputs = list(calibration_inputs(reader.cut(load_examples(squad_file))))
    assert len(inputs) == 8
    names = node_names(source)
    assert len(names) == 2 * 8 + 1
    pattern = ".*layer.0.*"
    sizes = []
    for number, (recipe, given) in enumerate(
        [
            (Quantisation("dynamic"), None),
            (Quantisation("dynamic", ignored=(pattern,)), None),
            (Quantisation("static", smooth_quant=0.5), inputs),
            (Quantisation("static", ignored=(pattern,)), inputs),
        ]
    ):
        target = tmp_path / f"{number}.xml"
        quantise(source, target, recipe, given)
        sizes.append(target.with_suffix(".bin").stat().st_size)
        model = OpenVinoModel(target, "openvino-int8", precision="fp32")
        starts, _ = model(inputs[0])
        assert 1e-4 < (starts - reader.forward(inputs[0])[0]).abs().max() < 1
    assert sizes[0] < sizes[1] < source.with_suffix(".bin").stat().st_size
    assert sizes[2] < sizes[3]


@pytest.mark.parametrize("recipe", ["static", "dynamic"])
def test_sums_of_large_products_do_not_overflow(recipe: Literal["static", "dynamic"], tmp_path: Path) -> None:
    """By default on any processor: weights that are all 1 have the largest products that there are."""
    import openvino

    inputs = torch.rand(20, 1, 64, generator=torch.Generator().manual_seed(1))
    size = openvino.PartialShape([-1, -1, 64])
    given = openvino.opset13.parameter(size, dtype=openvino.Type.f32, name="x")
    product = openvino.opset13.matmul(given, openvino.opset13.constant(torch.ones(64, 64).numpy()), False, True)
    openvino.save_model(openvino.Model([product], [given]), str(tmp_path / "sum.xml"), compress_to_fp16=False)
    given_batches = [{"x": row[None]} for row in inputs] if recipe == "static" else None
    quantise(tmp_path / "sum.xml", tmp_path / "int8.xml", Quantisation(recipe), given_batches)
    compiled = openvino.Core().compile_model(str(tmp_path / "int8.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (found,) = compiled(inputs.numpy()).values()
    assert torch.from_numpy(found) == pytest.approx(inputs.sum(-1, keepdim=True).expand(20, 1, 64), rel=0.02)


def test_refused(exported: tuple[Reader, Path, dict], tmp_path: Path) -> None:
    reader, directory, _ = exported
    with pytest.raises(DistilError, match="runs its LSTM over the padding of a batch: use runtime='onnx'"):
        export_reader(students.bilstm(reader, embedding_size=12, units=8), tmp_path / "x", FLOAT)
    with pytest.raises(DistilError, match="calibration data is needed"):
        export_reader(reader, tmp_path / "x", ExportSettings(int8="static", runtime="openvino"))
    with pytest.raises(DistilError, match="per_channel has no effect on OpenVINO's int8"):
        ExportSettings(runtime="openvino", per_channel=False)
    with pytest.raises(DistilError, match="reduce_range has no effect on OpenVINO's dynamic int8"):
        ExportSettings(runtime="openvino", reduce_range=False)
    assert not ExportSettings(runtime="openvino", int8="static", reduce_range=False).reduce_range
    with pytest.raises(DistilError, match="runtime must be one of onnx, openvino, all, not 'jax'"):
        ExportSettings(runtime="jax")
    for given in ({"smooth_quant": 0.5}, {"reduce_range": False}):
        with pytest.raises(DistilError, match="smooth_quant and reduce_range have no effect in dynamic"):
            Quantisation("dynamic", **given)
    for wrong in ({"recipe": "int4"}, {"recipe": "static", "smooth_quant": 2}):
        with pytest.raises(DistilError, match="must be"):
            Quantisation(**wrong)
    source = directory / FILES["openvino"][0]
    with pytest.raises(DistilError, match="give both or neither"):
        quantise(source, tmp_path / "x.xml", Quantisation("static"))
    with pytest.raises(DistilError, match="NNCF cannot quantise the model"):
        quantise(source, tmp_path / "x.xml", Quantisation("dynamic", ignored=("nowhere",)))
    assert not list(tmp_path.glob("x*"))


def test_a_model_whose_export_gives_something_else_is_refused(
    tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = OpenVinoModel.__call__
    monkeypatch.setattr(OpenVinoModel, "__call__", lambda *given: tuple(logits + 1 for logits in honest(*given)))
    with pytest.raises(DistilError, match="its export for OpenVINO differ by up to"):
        export_reader(tiny_reader(num_hidden_layers=1), tmp_path / "reader", FLOAT)
    assert not (tmp_path / "reader").exists()
