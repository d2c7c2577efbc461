"""Loading of models: code that comes with one never runs, and differences of transformers 4 and 5 do not show."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    DebertaV2Config,
    DebertaV2ForQuestionAnswering,
    PreTrainedTokenizerFast,
)

from augment.contextual import ContextualCandidates
from augment.settings import AugmentSettings
from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.models.language_model import LanguageModel
from tests.conftest import make_tiny_reader

CONTEXT = (
    "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on. Zu\u0308rich \u2014 "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd \u6771\u4eac a\u00a0b. The harbour was built in 1702 by Baak, "
    "who came from Delft with forty masons; bees dance to tell their sisters where the flowers are."
)
QUESTION = "Who wrote the first program?"
WINDOWS = WindowSettings(48, 16, 16)


def change(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    content = json.loads(file.read_text(encoding="utf-8")) | entries
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.fixture
def with_code(tiny_reader: Callable[..., Reader], tmp_path: Path) -> Path:
    """A model of its own kind, whose code leaves a mark where it is run."""
    directory = tiny_reader().save(tmp_path / "own")
    classes = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForQuestionAnswering": "own.OwnModel",
        "AutoModelForMaskedLM": "own.OwnModel",
    }
    change(directory / "config.json", model_type="own", auto_map=classes)
    change(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    mark = tmp_path / "ran"
    (directory / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import BertConfig as OwnConfig, BertForQuestionAnswering as OwnModel, BertTokenizer as OwnTokenizer\n"
    )
    return directory


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that were asked on stdin, each answered by a yes."""
    questions: list[str] = []

    def yes(question: str = "") -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", yes)
    return questions


@pytest.mark.parametrize(
    "load", [Reader.load, LanguageModel.load, lambda path: ContextualCandidates(AugmentSettings(model=path))]
)
def test_code_that_comes_with_a_model_never_runs(
    with_code: Path, load: Callable[[Path], object], asked: list[str]
) -> None:
    with pytest.raises(DistilError, match="'own' model comes with code of its own"):
        load(with_code)
    assert not asked
    assert not (with_code.parent / "ran").exists()


def test_a_kind_that_transformers_has_is_loaded_without_the_code_beside_it(with_code: Path, asked: list[str]) -> None:
    change(with_code / "config.json", model_type="bert")
    reader = Reader.load(with_code, window_settings=WINDOWS)
    assert type(reader.model).__module__ == "transformers.models.bert.modeling_bert"
    assert not asked
    assert not (with_code.parent / "ran").exists()


# --- files of either version ---------------------------------------------------------------------------------------


@pytest.fixture
def with_markers(tokenizer: BertTokenizerFast, tmp_path: Path) -> Reader:
    """A tiny reader whose tokenizer has two special tokens more."""
    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["<q>", "<c>"]})
    return make_tiny_reader(more)


@pytest.mark.parametrize("written_by", [4, 5])
def test_a_directory_is_read_whichever_transformers_wrote_it(
    with_markers: Reader, tmp_path: Path, written_by: int
) -> None:
    """The files as the other version writes them, by hand: each environment has only one."""
    directory = with_markers.save(tmp_path / "reader")
    (directory / "special_tokens_map.json").unlink(missing_ok=True)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    settings: dict[str, Any] = {"mask_token": "[MASK]", "model_max_length": 512, **names}
    if written_by == 5:
        settings |= {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True}
        settings |= {"extra_special_tokens": ["<q>", "<c>"]}
    else:
        settings |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "extra_special_tokens": {}}
        settings |= {"additional_special_tokens": ["<q>", "<c>"]}
        (directory / "special_tokens_map.json").write_text(
            json.dumps({**names, "mask_token": "[MASK]", "additional_special_tokens": ["<q>", "<c>"]})
        )
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = Reader.load(directory, window_settings=with_markers.window_settings, device="cpu", precision="fp32")
    assert loaded.answer(QUESTION, CONTEXT, 9) == with_markers.answer(QUESTION, CONTEXT, 9)
    assert {"<q>", "<c>"} <= set(loaded.tokenizer.all_special_tokens)
    assert loaded.tokenizer.tokenize("<q> bees") == ["<q>", "bees"]
    loaded.save(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(f"<q>{QUESTION}", CONTEXT).data == with_markers.tokenizer(f"<q>{QUESTION}", CONTEXT).data


def test_what_is_saved_is_for_both_transformers(with_markers: Reader, tmp_path: Path) -> None:
    settings = json.loads((with_markers.save(tmp_path / "reader") / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] != "TokenizersBackend"  # transformers 4 has no such class
    assert not isinstance(settings.get("extra_special_tokens"), list)  # and reads a mapping under this name
    assert settings["additional_special_tokens"] == ["<q>", "<c>"]
    assert settings["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
    generic = copy.copy(with_markers)
    generic.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=with_markers.tokenizer.backend_tokenizer, **with_markers.tokenizer.special_tokens_map
    )
    settings = json.loads((generic.save(tmp_path / "generic") / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_splits_as_its_file_says(tmp_path: Path) -> None:
    """transformers 5 gives DeBERTa's another normaliser than the file has: it keeps white space and ligatures."""
    pieces = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0), ("\u2581", -1.0)]
    pieces += [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz.?\ufb01"]
    backend = Tokenizer(Unigram(pieces, unk_id=3))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    backend.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    config = DebertaV2Config(
        vocab_size=len(pieces) + 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    directory = tmp_path / "deberta"
    DebertaV2ForQuestionAnswering(config).save_pretrained(directory)
    backend.save(str(directory / "tokenizer.json"))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    (directory / "tokenizer_config.json").write_text(json.dumps(special | {"tokenizer_class": "DebertaV2Tokenizer"}))
    text = "WHO  \ufb01nds\nit?"
    loaded = Reader.load(directory, window_settings=WindowSettings(48, 16, 16), device="cpu")
    assert loaded.tokenizer(text, text)["input_ids"] == backend.encode(text, text).ids
    plain = AutoTokenizer.from_pretrained(loaded.save(tmp_path / "saved"))
    assert plain(text, text)["input_ids"] == backend.encode(text, text).ids


def test_weights_that_files_lack_are_the_same_every_time(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    """A run that began with a model without a head is resumed, and finds the same student."""
    LanguageModel.of(tiny_reader()).save(tmp_path / "encoder")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        reader = Reader.load(tmp_path / "encoder", device="cpu", window_settings=WindowSettings(48, 16, 16))
        assert reader.untrained == ("qa_outputs.bias", "qa_outputs.weight")
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append(reader.model.qa_outputs.weight)
    assert torch.equal(*found)
    assert found[0].any()
