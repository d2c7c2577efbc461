"""The recipe's file: what it may hold, and the errors about what it may not."""

from dataclasses import replace
from pathlib import Path

import pytest

from haystack_distill import DistilError, TrainingSettings
from haystack_distill.data.text_windows import TextSettings
from haystack_distill.data.transfer import TransferSet
from haystack_distill.objectives import IntermediateLayers, Labels, Linear, PredictionLayer
from haystack_distill.recipes.schema import (
    CorpusText,
    OwnTokenizer,
    Pruning,
    Recipe,
    Stage,
    StageResult,
    StageSource,
    StudentShape,
    load_recipe,
)
from haystack_distill.training.adaptation import LastLayers

TOP = "teacher: t\ndata: d\noutput_dir: o\n"
HEADS = "[{{data: d, teacher: none, head: {}}}, {{data: e, teacher: t, head: {}}}]"
SOURCES = "[{data: d, teacher: [{name: a, weight: 0.7}, {stage: one, weight: 0.3}]}, {data: [e, f], teacher: none}]"
LEAST = TOP + "stages: [{name: one, method: prediction_layer}]\n"


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_defaults_are_those_of_the_dataclasses(tmp_path: Path) -> None:
    [stage] = load(tmp_path, LEAST).stages
    assert stage == Stage("one", PredictionLayer())
    assert stage.settings == TrainingSettings(evaluate_every=None)
    assert load(tmp_path, LEAST) == Recipe("t", ["d"], "o", [stage])


def test_every_kind_of_value(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        """
teacher: t
data: [a.json, b.json]
output_dir: o
student: {hidden_size: 192, num_hidden_layers: 3, hidden_act: relu, layer_norm_eps: 1e-5, tie: true}
max_seq_len: 300
seed: 7
stages:
  - name: general
    corpus: [x.txt, y.txt]
    method: intermediate_layers
    max_steps: 7
    learning_rate: 1e-4
    dropout: none
  - name: wikipedia
    corpus: {name: wikimedia/wikipedia, config: 20231101.en, max_seq_len: 64}
    teacher: general
    method: masked_language_model
    max_steps: 9
  - name: contexts
    corpus: contexts
    method: {name: masked_language_model, cosine_weight: 0}
    max_steps: 9
  - name: layers
    method: {name: intermediate_layers, layer_mapping: [2, none, 6]}
    augment: {multiplication_factor: 4, model: some/model, p_mask: 0, tokenizer: none}
    adaptation: {name: last_layers, n_layers: 2}
    checkpoint_every: epoch
    data: c.json
  - name: answers
    teacher: [t, other, {stage: layers}]
    method:
      - {name: prediction_layer, final_weight: 0.25}
      - {name: labels, weight: 0.5}
    keep_best: true
    adaptation: biases
    augment: none
dev_data: dev.json
labels_only: true
""",
    )
    assert recipe.data == ["a.json", "b.json"]
    assert recipe.windows.doc_stride == 100
    assert recipe.student == StudentShape(
        configured={
            "hidden_size": 192,
            "num_hidden_layers": 3,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "tie": True,
        }
    )
    general, wikipedia, contexts, layers, answers = recipe.stages
    assert general.corpus == CorpusText(["x.txt", "y.txt"])
    assert general.settings == TrainingSettings(max_steps=7, learning_rate=1e-4, dropout=None, evaluate_every=None)
    assert wikipedia.corpus == CorpusText(["wikimedia/wikipedia"], {"config": "20231101.en"}, TextSettings(64))
    assert wikipedia.teacher == [StageResult("general")]
    assert contexts.corpus == CorpusText()
    assert layers.method == IntermediateLayers(layer_mapping=[2, None, 6])
    assert layers.data == ["c.json"]
    assert layers.augment is not None
    assert (layers.augment.model, layers.augment.seed, layers.augment.multiplication_factor) == ("some/model", 7, 4)
    assert layers.adaptation == LastLayers(2)
    assert layers.settings.checkpoint_every == "epoch"
    assert answers.teacher == ["t", "other", StageResult("layers")]
    assert answers.method == Linear(1.0, 0.25) * PredictionLayer() + 0.5 * Labels()
    assert answers.settings.evaluate_every == TrainingSettings.evaluate_every
    assert answers.augment is None
    assert recipe.labels_only
    first, second = recipe.as_dict()["stages"][4]["arguments"]["parts"]
    assert (first["weight"], first["final_weight"]) == (1.0, 0.25)
    assert second == {"method": "labels", "weight": 0.5, "arguments": {}}


def test_a_student_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    recipe = load(tmp_path, LEAST + "student: {layers: 2, tokenizer: bpe}")
    assert recipe.student == StudentShape(layers=2, tokenizer=OwnTokenizer("bpe"))
    assert recipe.as_dict()["student"]["tokenizer"] == {"algorithm": "bpe", "vocab_size": 8000}
    recipe = load(tmp_path, LEAST + "student: {hidden_size: 8, tokenizer: {vocab_size: 900}}")
    assert recipe.student == StudentShape(configured={"hidden_size": 8}, tokenizer=OwnTokenizer("unigram", 900))


def test_a_student_by_name(tmp_path: Path) -> None:
    assert load(tmp_path, LEAST + "student: some/reader").student == StudentShape(start_from="some/reader")


def test_a_student_by_importance(tmp_path: Path) -> None:
    pruned = load(
        tmp_path, LEAST + "student: {pruned: {layers: 3, intermediate_size: 8, which: [1, 2, 4], data: a.json}}"
    )
    assert pruned.student == StudentShape(
        pruned=Pruning(layers=3, intermediate_size=8, which=[1, 2, 4], data=["a.json"])
    )
    assert pruned.student.by_importance
    assert pruned.as_dict()["student"]["pruned"]["importance_sample"] == 100
    cut = load(tmp_path, LEAST + "student: {layers: 3, which: importance}")
    assert cut.student.by_importance
    plain = load(tmp_path, LEAST)
    assert not plain.student.by_importance
    assert "pruned" not in plain.as_dict()["student"]


def stage(text: str) -> str:
    """A recipe with one more stage, called two."""
    return f"{TOP}stages:\n  - {{name: one, method: prediction_layer}}\n  - {{name: two, {text}}}\n"


LAYERS = "method: intermediate_layers"
CORPUS = f"{LAYERS}, max_steps: 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("techer: t", "unknown key 'techer'; did you mean 'teacher'"),
        ("teacher: t", "data is missing"),
        (TOP, "stages is missing"),
        (TOP + "stages:", "stages is empty; a recipe has at least one stage"),
        (TOP + "stages: {name: a}", "stages: must be a list, each stage with a dash"),
        (TOP + "stages: [a]", "stage 1: must have keys of its own"),
        (TOP + "stages: [{method: labels}]", "stage 1: name is missing"),
        (TOP + "stages: [{name: a/b, method: labels}]", "stage a/b: name must be letters"),
        (TOP + "stages: [{name: a}]", "stage a: method is missing"),
        (stage("method: labels").replace("two", "one"), "two stages are called 'one'"),
        (stage(f"{LAYERS}, n_epoch: 3"), "stage two: unknown key 'n_epoch'; did you mean 'n_epochs'"),
        (stage(f"{LAYERS}, n_epochs: 3.5"), "stage two: n_epochs: '3.5' is not a whole number"),
        (stage(f"{LAYERS}, learning_rate: fast"), "stage two: learning_rate: 'fast' is not a number"),
        (stage(f"{LAYERS}, learning_rate: -1"), "stage two: learning_rate must be a number above 0"),
        (stage(f"{LAYERS}, learning_rate:"), "stage two: learning_rate: a value is missing"),
        (stage(f"{LAYERS}, n_epochs: 2, max_steps: 3"), "stage two: n_epochs has no effect where max_steps is set"),
        (stage(f"{LAYERS}, evaluate_every: 5"), "stage two: evaluate_every has no effect without dev_data"),
        (stage(f"{LAYERS}, keep_best: true"), "stage two: keep_best chooses by dev_data"),
        # methods
        (stage("method: layers"), "stage two: method: there is no method 'layers'; there are labels, pred"),
        (stage("method:"), "stage two: method: must be a name .labels, prediction_layer"),
        (stage("method: {temperature: 2}"), "stage two: method: must be a name"),
        (stage("method: []"), "stage two: method: the list is empty"),
        (
            stage("method: {name: prediction_layer, temprature: 2}"),
            "stage two: method: unknown key 'temprature'; did you mean 'temperature'",
        ),
        (stage("method: {name: labels, temperature: 2}"), "stage two: method: unknown key 'temperature'"),
        (
            stage("method: {name: prediction_layer, distillation_loss: kl}"),
            "stage two: method: distillation_loss: 'kl' is not one of kl_div, mse, jensen_shannon, correlation",
        ),
        (
            stage("method: {name: prediction_layer, distillation_loss: mse, temperature: 3}"),
            'stage two: method: distillation_loss="mse" compares unscaled logits, so temperature=3.0 would have no',
        ),
        (
            stage("method: [{name: labels, final_weight: 1}]"),
            "stage two: method: final_weight: a weight from 1.0 to 1.0",
        ),
        (stage("method: labels, keep_best: true") + "dev_split: 1\n", "dev_split must be a number between 0 and 1"),
        (stage("method: labels") + "dev_split: 0.1\ndev_data: d\n", "dev_data and dev_split are two ways to one thing"),
        (stage("method: [{name: labels, weight: much}]"), "stage two: method: weight: 'much' is not a number"),
        (stage("method: [{name: labels, weight: -1}]"), "stage two: method: the weight of a method must be a number"),
        (
            stage(f"{LAYERS}, layer_mapping: last"),
            "'layer_mapping' is an option of the method; write method: {name: int",
        ),
        # adaptation
        (stage(f"{LAYERS}, adaptation: last"), "adaptation: there is no adaptation 'last'; there are all, last_layers"),
        (
            stage(f"{LAYERS}, n_layers: 2"),
            "'n_layers' is an option of the adaptation; write adaptation: {name: last_la",
        ),
        # augmentation
        (stage(f"{LAYERS}, augment: 20"), "stage two: augment: must have keys of its own"),
        (stage(f"{LAYERS}, augment: {{multiplication_factor: 0}}"), "augment: multiplication_factor must be"),
        (stage(f"{LAYERS}, augment: {{p_mask: 0.6, p_pos: 0.6}}"), "stage two: augment: p_mask . p_pos is 1.2"),
        (stage(f"{LAYERS}, augment: {{provenance: true}}"), "augment: provenance has no effect in a recipe"),
        (
            stage(f"{LAYERS}, checkpoint_every: none, keep_checkpoints: 7"),
            "stage two: keep_checkpoints has no effect with checkpoint_every: none",
        ),
        (
            stage(f"{LAYERS}, augment: {{augment: context, p_ng: 0.25}}"),
            "augment: p_ng has no effect where only contexts are",
        ),
        (
            stage(f"{LAYERS}, augment: {{multiplication_factor: 1, augment: question}}"),
            "augment: augment has no effect with a multiplication_factor of 1",
        ),
        (stage(f"{LAYERS}, p_mask: 0.2"), "'p_mask' is an option of augmentation; write augment: {p_mask: ...}"),
        # corpus
        (stage(f"{LAYERS}, corpus: c"), "stage two: a corpus is a stream without an end; set max_steps"),
        (stage(f"{CORPUS}, corpus: c, n_epochs: 2"), "stage two: n_epochs has no effect on a corpus"),
        (stage(f"{CORPUS}, corpus: c, keep_best: true"), "stage two: keep_best has no effect on a corpus"),
        (stage(f"{CORPUS}, corpus: c, data: d"), "stage two: data has no effect in a stage on a corpus"),
        (stage(f"{CORPUS}, corpus: c, augment: {{}}"), "stage two: augment has no effect in a stage on a corpus"),
        (
            stage(f"{CORPUS}, corpus: c, teacher: [a, b]"),
            "stage two: a stage on a corpus learns from one language model",
        ),
        (stage(f"{CORPUS}, corpus:"), "stage two: corpus: is empty"),
        (
            stage(f"{CORPUS}, corpus: {{text_column: a}}"),
            "corpus: text_column has no effect on the contexts of the data",
        ),
        (stage(f"{CORPUS}, corpus: {{files: a, split: b}}"), "corpus: split has no effect with files"),
        (stage(f"{CORPUS}, corpus: {{files: a, name: b}}"), "corpus: files and name are two corpora"),
        (stage(f"{CORPUS}, corpus: c, mask_probability: 0"), "'mask_probability' is an option of the corpus"),
        # transfer sets
        (stage(f"{CORPUS}, corpus: c, transfer: d"), "stage two: transfer has no effect in a stage on a"),
        (stage(f"{LAYERS}, transfer: {{data: d, proportion: 1}}"), "stage two: transfer: proportion must be a number"),
        (stage(f"{LAYERS}, transfer: {{proportion: 0.2}}"), "stage two: transfer: data is missing"),
        (stage(f"{LAYERS}, transfer: {{data: d, questions_per_context: 2}}"), "transfer: questions_per_context=2"),
        (stage(f"{LAYERS}, proportion: 0.5"), "'proportion' is an option of the transfer set; write transfer: {data"),
        # sources
        (stage(f"{LAYERS}, sampling_exponent: 0.5"), "stage two: sampling_exponent has no effect without sources"),
        (stage(f"{LAYERS}, sources: [{{data: d, teacher: t}}]"), "stage two: sources must be two or more"),
        (stage(f"{LAYERS}, sources: [{{data: d}}]"), "stage two: sources: source 1: teacher is missing; name one, or"),
        (stage(f"{LAYERS}, sources: {SOURCES}, data: d"), "stage two: data has no effect in a stage with sources"),
        (stage(f"{LAYERS}, sources: {SOURCES}, teacher: t"), "stage two: teacher has no effect in a stage with"),
        (stage(f"{LAYERS}, sources: {SOURCES}, sampling_exponent: 2"), "stage two: sampling_exponent must be a number"),
        (stage(f"{LAYERS}, sources: {HEADS.format('../a', 'b')}"), "stage two: source 1: head must be letters, digits"),
        (
            stage(f"{LAYERS}, sources: {HEADS.format('a', 'a')}"),
            "stage two: all sources have the head 'a', which has no",
        ),
        # teachers
        (stage(f"{LAYERS}, teacher: {{stage: two}}"), "stage two: teacher: no stage before it is called 'two'; before"),
        (stage(f"{LAYERS}, teacher: [a, {{name: b, weight: 1}}]"), "teacher: some of the teachers have a weight"),
        (stage(f"{LAYERS}, teacher: {{name: b, weight: 1}}"), "weight has no effect with a single teacher"),
        (
            stage(f"{LAYERS}, teacher: a, teacher_average: logits"),
            "teacher_average has no effect with a single teacher",
        ),
        (stage(f"{LAYERS}, teacher: {{weight: 1}}"), "teacher: give name .* or stage"),
        (stage(f"{LAYERS}, teacher:"), "stage two: teacher: a value is missing"),
        # what belongs elsewhere
        (stage(f"{LAYERS}, seed: 3"), "stage two: 'seed' is one for all stages; write it at the top of the file"),
        (stage(f"{LAYERS}, max_seq_len: 3"), "stage two: 'max_seq_len' is one for all stages"),
        (LEAST + "n_epochs: 3", "'n_epochs' belongs to a stage"),
        # keys of earlier versions
        (
            TOP + "layers: {n_epochs: 3}",
            "`layers` is now a stage; write stages: - {name: layers, method: intermediate_l",
        ),
        (TOP + "answers: none", "`answers` is now a stage; write stages: - {name: answers, method: prediction_layer"),
        (TOP + "general: {corpus: c}", "`general` is now a stage; .*method: intermediate_layers, corpus: contexts"),
        (stage(f"{LAYERS}, objective: layers"), "stage two: 'objective' is now called method: intermediate_layers"),
        (stage(f"{CORPUS}, corpus: c, corpus_split: s"), "'corpus_split' is now an option of the corpus; .*split: ..."),
        (stage(f"{LAYERS}, multiplication_factor: 4"), "'multiplication_factor' is an option of augmentation"),
        (
            stage(f"{LAYERS}, temperature: 4"),
            "'temperature' is an option of the method; write method: {name: prediction",
        ),
        # the student and the whole
        (LEAST + "student: {layers: 3, hidden_size: 4}", "student: give one of"),
        (LEAST + "student: {which: last}", "student: which chooses among layers"),
        (LEAST + "student: {tokenizer: [bpe]}", "student: tokenizer: must be wordpiece, bpe or unigram, or have keys"),
        (LEAST + "student: {tokenizer: words}", "student: tokenizer: algorithm: .*unigram"),
        (LEAST + "student: {tokenizer: {size: 3}}", "student: tokenizer: unknown key 'size'"),
        (
            LEAST + "student: {tokenizer: bpe, start_from: r}",
            "student: tokenizer is for a student that the recipe makes",
        ),
        (LEAST + "student: {layers: [3]}", "student: layers: must be a single value"),
        (LEAST + "student: {layers: 3, pruned: {heads: 1}}", "student: give one of"),
        (LEAST + "student: {pruned: {}}", "student: pruned: nothing is pruned"),
        (LEAST + "student: {pruned: 3}", "student: pruned: must have keys of its own"),
        (LEAST + "student: {pruned: {heads: 1, which: last}}", "student: pruned: which chooses among the layers"),
        (LEAST + "student: {pruned: {width: 1}}", "student: pruned: unknown key 'width'"),
        (LEAST + "student: {prune: {heads: 1}}", "student: unknown key 'prune'; did you mean 'pruned'"),
        (LEAST + "student: {layer: 3}", "student: unknown key 'layer'; did you mean 'layers'"),
        (LEAST + "student: {bilstm: {}, layers: 3}", "student: give one of"),
        (LEAST + "student: {bilstm: {unit: 3}}", "student: bilstm: unknown key 'unit'; did you mean 'units'"),
        (LEAST + "student: {bilstm: {units: many}}", "student: bilstm: units: 'many' is not a whole number"),
        (LEAST + "student: {bilstm: {seed: 3}}", "student: bilstm: unknown key 'seed'"),
        (LEAST + "student: {bilstm: }", "student: bilstm: must have keys of its own"),
        (stage(f"{CORPUS}, corpus: c") + "student: {bilstm: {}}", "stage two: a BiLSTM reader does not learn from a"),
        (LEAST + "student:", "student: must be a name or have keys of its own"),
        (LEAST + "student: {num_hidden_layers: 2, seed: 3}", "seed is a key of the recipe; give it at the top"),
        (LEAST + "student: {num_hidden_layers: 2, teacher: x}", "teacher is a key of the recipe"),
        (LEAST + "labels_only: maybe", "labels_only: 'maybe' is neither true nor false"),
        (LEAST + "labels_only: true", "labels_only is there to compare with"),
        (
            stage("method: labels, student: {made_from: one, layers: 2}") + "dev_data: d\nlabels_only: true",
            "labels_only trains the student that the recipe makes",
        ),
        (LEAST + "max_query_length: 400", "max_query_length 400 leaves no room"),
        (LEAST + "precision: fp8", "precision: 'fp8' is not one of auto"),
        (LEAST + "seed: 1\nseed: 2", "the key 'seed' appears twice"),
        ("- a", "must map"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DistilError, match=rf"recipe.yaml: .*{message.replace('{', chr(92) + '{')}"):
        load(tmp_path, text)


def test_directories_are_numbered(tmp_path: Path) -> None:
    recipe = load(tmp_path, stage("method: labels"))
    assert [recipe.directory_of(stage) for stage in recipe.stages] == ["1-one", "2-two"]
    assert replace(recipe, stages=recipe.stages[1:]).directory_of("two") == "1-two"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DistilError, match=r"absent.yaml: cannot be read"):
        load_recipe(tmp_path / "absent.yaml")


def test_weighted_teachers(tmp_path: Path) -> None:
    teachers = "[{name: a, weight: 0.7}, {stage: one, weight: 0.3}], teacher_average: logits"
    made = load(tmp_path, stage(f"method: prediction_layer, teacher: {teachers}")).stages[-1]
    assert made.teacher == ["a", StageResult("one")]
    assert made.teacher_weights == [0.7, 0.3]
    assert made.teacher_average == "logits"


def test_sources(tmp_path: Path) -> None:
    made = load(tmp_path, stage(f"method: prediction_layer, sources: {SOURCES}, sampling_exponent: 0")).stages[-1]
    assert made.sources == [
        StageSource(["d"], ["a", StageResult("one")], [0.7, 0.3]),
        StageSource(["e", "f"], None),
    ]
    assert made.sampling_exponent == 0
    assert made.as_dict()["sources"][0]["teacher"] == ["a", {"stage": "one"}]
    assert "head" not in made.as_dict()["sources"][0]
    made = load(tmp_path, stage(f"method: prediction_layer, sources: {HEADS.format('a', 'none')}")).stages[-1]
    assert [source.head for source in made.sources] == ["a", None]
    assert made.as_dict()["sources"][0]["head"] == "a"


def test_a_transfer_set(tmp_path: Path) -> None:
    assert load(tmp_path, stage(f"{LAYERS}, transfer: m.jsonl")).stages[-1].transfer == TransferSet(["m.jsonl"])
    pool = "{data: [a, b], proportion: 0.25, question_pool: pool.txt, questions_per_context: 3}"
    recipe = load(tmp_path, stage(f"{LAYERS}, transfer: {pool}"))
    assert recipe.stages[-1].transfer == TransferSet(["a", "b"], 0.25, "pool.txt", 3)
    assert recipe.as_dict()["stages"][-1]["transfer"]["proportion"] == 0.25


def test_a_bilstm(tmp_path: Path) -> None:
    options = "{embeddings: glove.txt, embedding_size: none, units: 64, num_hidden_layers: 2, recurrent_dropout: 0.1}"
    made = load(tmp_path, LEAST + f"student: {{bilstm: {options}}}").student
    assert made == StudentShape(
        bilstm={
            "embeddings": "glove.txt",
            "embedding_size": None,
            "units": 64,
            "num_hidden_layers": 2,
            "recurrent_dropout": 0.1,
        }
    )
    assert load(tmp_path, LEAST + "student: {bilstm: {}}").student == StudentShape(bilstm={})


def test_dropout_is_a_number_or_a_word(tmp_path: Path) -> None:
    for text, value in (("0.25", 0.25), ("auto", "auto"), ("none", None)):
        [made] = load(tmp_path, TOP + f"stages: [{{name: one, method: labels, dropout: {text}}}]").stages
        assert made.settings.dropout == value
