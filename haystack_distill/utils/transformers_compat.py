"""The differences between transformers 4 and 5 that matter here: loading and saving of models and tokenizers."""

import contextlib
import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainingArguments,
    dynamic_module_utils,
    modeling_utils,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from haystack_distill.errors import DistilError
from haystack_distill.utils.atomic import save_pretrained
from haystack_distill.utils.auto_classes import import_own_models
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.model_files import TRAINED_RECORD, check_model_directory, check_tokenizer_file
from haystack_distill.utils.model_inputs import takes_token_types

logger = logging.getLogger(__name__)

_GENERIC_CLASS_OF_5 = "TokenizersBackend"  # a class that transformers 4 lacks
_GENERIC_CLASSES = (_GENERIC_CLASS_OF_5, "PreTrainedTokenizer")  # names that either writes for PreTrainedTokenizerFast
_EXTRA_TOKENS = ("special_tokens_map.json", "added_tokens.json")  # which transformers 5 does not write, but reads
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_BERT_SETTINGS = {  # of the BertNormalizer, and their names in tokenizer_config.json
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}

TRANSFORMERS_5 = Version(transformers.__version__) >= Version("5.0.0.dev0")


def load_model(auto_class: Any, name: str, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model in fp32, from safetensors only, and the names of weights that its files lack.

    A head of another shape (three labels where a reader has start and end) counts as missing. Missing weights are
    random, and the same every time: a run is resumed, and a teacher known again, by the weights that it began with.

    Raises:
        DistilError: The weights do not fit the configuration.
    """
    dtype = {"dtype" if TRANSFORMERS_5 else "torch_dtype": torch.float32}  # transformers 5 keeps the dtype of the files
    with _quiet(), torch.random.fork_rng(devices=[]):  # the caller reports missing weights
        torch.manual_seed(0)
        model, loading = auto_class.from_pretrained(
            name,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below: only the head may differ
            trust_remote_code=False,
            **dtype,
            **settings,
        )
    mismatched = {entry[0]: entry[1:] for entry in loading["mismatched_keys"]}
    for weight, (stored, wanted) in mismatched.items():
        if weight.startswith(f"{model.base_model_prefix}."):
            raise DistilError(
                f"{name}: {weight} has the shape {list(stored)} in the weights and {list(wanted)} by config.json, so "
                "the two do not belong together: take both from the original model"
            )
    missing = {key for key in loading["missing_keys"] if not key.endswith("position_ids")}
    return model, sorted(missing | mismatched.keys())


def load_with_tokenizer(
    auto_class: Any, name: str, what: str, **hub: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """A model as from `load_model` and its fast tokenizer.

    Args:
        auto_class: The transformers class that loads the model.
        name: A directory or hub name.
        what: What is being loaded, for error messages.
        hub: `token` and `revision`, for models on the hub.

    Returns:
        The model, its tokenizer, and the names of weights that its files lack.

    Raises:
        DistilError: There is nothing of that name, or it is not a model with a fast tokenizer.
    """
    check_model_directory(name)
    if (Path(name) / TRAINED_RECORD).exists():
        raise DistilError(
            f"{name} holds only the weights of a reader that were trained, which cannot be loaded as a {what} here: "
            "load it with Reader.load, or train again without save_only_trained and adapters"
        )
    with _loading_errors(name, what):
        config = _config_for(auto_class, name, **hub)
        tokenizer = load_tokenizer(name, **hub)
        model, fresh = load_model(auto_class, name, config=config, **hub)
    return model, tokenizer, fresh


def load_without_weights(
    auto_class: Any, name: str, what: str, **hub: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without its weights (on PyTorch's "meta" device) and its fast tokenizer.

    The arguments are those of `load_with_tokenizer`.

    Raises:
        DistilError: There is nothing of that name, or it is not a model with a fast tokenizer.
    """
    check_model_directory(name, weights=False)
    with _loading_errors(name, what):
        config = _config_for(auto_class, name, **hub)
        tokenizer = load_tokenizer(name, **hub)
        with torch.device("meta"):
            return auto_class.from_config(config, trust_remote_code=False), tokenizer


def architectures(name: str, what: str, **hub: Any) -> list[str]:
    """The class names in a model's configuration; the arguments are those of `load_with_tokenizer`.

    Raises:
        DistilError: There is nothing of that name, or no model that transformers knows.
    """
    check_model_directory(name)
    with _loading_errors(name, what):
        return list(_config_for(AutoConfig, name, **hub).architectures or [])


def require_known_model_type(name: str, what: str, **hub: Any) -> None:
    """Check that transformers has a model's type; the arguments are those of `load_with_tokenizer`.

    Raises:
        DistilError: Its files are broken, or code that comes with the model would have to run.
    """
    check_model_directory(name, weights=False)
    with _loading_errors(name, what):
        _config_for(AutoConfig, name, **hub)


@contextlib.contextmanager
def ignore_adapters() -> Iterator[None]:
    """Load models within the context as if peft were not installed.

    With peft, transformers 4 looks for adapters beside each model, and fails where a model is a single file, which is
    how farm-haystack saves it.
    """
    present = modeling_utils.is_peft_available
    modeling_utils.is_peft_available = lambda: False
    try:
        yield
    finally:
        modeling_utils.is_peft_available = present


@contextlib.contextmanager
def refuse_remote_code() -> Iterator[None]:
    """While another library loads a model: transformers refuses remote code without asking on stdin."""
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def load_tokenizer(name: str, **hub: Any) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a directory or hub name, whichever version of transformers wrote it.

    It splits text as its tokenizer.json specifies: transformers 5 rebuilds many tokenizers from their class, with
    another normaliser or pre-tokeniser than the saved one. `hub` is as for `load_with_tokenizer`.
    """
    config = get_tokenizer_config(name, **hub)
    with _quiet():
        if TRANSFORMERS_5:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False, **hub)
        else:
            generic = config.get("tokenizer_class") == _GENERIC_CLASS_OF_5
            loader = PreTrainedTokenizerFast if generic else AutoTokenizer
            special_tokens = _special_tokens_for_4(config)
            tokenizer = loader.from_pretrained(name, use_fast=True, trust_remote_code=False, **special_tokens, **hub)
    if TRANSFORMERS_5 and getattr(tokenizer, "is_fast", False):
        file = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **hub)
        if file is not None:
            changed = _restore_parts(tokenizer, Path(file), config)
            if changed:
                logger.info(
                    "%s: transformers 5 would replace the %s of tokenizer.json; the one in the file is used, and saved",
                    name,
                    " and ".join(changed),
                )
    return tokenizer


def save_model(
    directory: str | Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    replacing: Callable[[], object] | None = None,
) -> Path:
    """Write a model directory that transformers 4 and 5 load to the same model and tokens; see `save_pretrained`.

    Args:
        directory: Where to.
        model: What has a `save_pretrained`.
        tokenizer: The tokenizer.
        replacing: Called before the first file is replaced.
    """
    target = expand_user(directory)

    def prepare(written: Path) -> None:
        if replacing is not None:
            replacing()
        for name in _EXTRA_TOKENS:  # of another tokenizer; both versions read them where they are
            if not (written / name).exists():
                (target / name).unlink(missing_ok=True)

    with _without_bars():
        return save_pretrained(target, model, _PortableTokenizer(tokenizer, model), replacing=prepare)


class _PortableTokenizer:
    """A tokenizer that saves itself so that transformers 4 and 5 load it alike."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self.tokenizer = tokenizer
        self.inputs = ["input_ids", "token_type_ids", "attention_mask"]
        if not takes_token_types(model):
            self.inputs.remove("token_type_ids")

    def save_pretrained(self, directory: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(directory)
        path = directory / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings |= _special_tokens_for_4(settings)
        if not settings.get("extra_special_tokens"):
            settings.pop("extra_special_tokens", None)
        for name in ("is_local", "local_files_only"):  # where it was loaded from
            settings.pop(name, None)
        # The two versions differ in whether a tokenizer returns token types by default.
        settings["model_input_names"] = self.inputs
        if settings["tokenizer_class"] in _GENERIC_CLASSES or self._is_rebuilt(directory, settings):
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # both have it, and use tokenizer.json as it is
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")

    def _is_rebuilt(self, directory: Path, settings: dict[str, Any]) -> bool:
        """Whether transformers 5 would load another tokenizer from these files."""
        if not getattr(self.tokenizer, "is_fast", False):
            return False
        if not TRANSFORMERS_5:  # version 5 rebuilds all that come from SentencePiece
            return type(self.tokenizer.backend_tokenizer.model).__name__ == "Unigram"
        with _quiet():
            again = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        return bool(_restore_parts(again, directory / "tokenizer.json", settings))


def _special_tokens_for_4(settings: dict[str, Any]) -> dict[str, Any]:
    """Additional special tokens under their name in transformers 4, where transformers 5 wrote them as a list."""
    extra = settings.get("extra_special_tokens")
    if not isinstance(extra, list):
        return {}
    named = [*(settings.get("additional_special_tokens") or []), *extra]
    contents = [entry["content"] if isinstance(entry, dict) else entry for entry in named]
    return {"extra_special_tokens": {}, "additional_special_tokens": list(dict.fromkeys(contents))}


def _restore_parts(tokenizer: PreTrainedTokenizerBase, file: Path, settings: dict[str, Any]) -> list[str]:
    """Give a tokenizer the parts in its tokenizer.json; returns the names of those that differed, bar the decoder."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    parts: dict[str, Any] = {part: stored.get(part) for part in _PARTS}
    normalizer, pre_tokenizer = parts["normalizer"] or {}, parts["pre_tokenizer"] or {}
    # These settings in tokenizer_config.json override tokenizer.json, as in transformers 4.
    if normalizer.get("type") == "BertNormalizer":
        for name, setting in _BERT_SETTINGS.items():
            if setting in settings:
                normalizer[name] = settings[setting]
    for part in (pre_tokenizer, parts["post_processor"] or {}):
        if part.get("type") in ("ByteLevel", "RobertaProcessing") and "add_prefix_space" in settings:
            part["add_prefix_space"] = settings["add_prefix_space"]
    template = json.loads(Tokenizer(WordLevel({"": 0}, "")).to_str())
    restored = Tokenizer.from_str(json.dumps(template | parts))
    backend = tokenizer.backend_tokenizer
    changed = []
    for part in _PARTS:
        own, wanted = getattr(backend, part), getattr(restored, part)
        if (own and own.__getstate__()) != (wanted and wanted.__getstate__()):
            setattr(backend, part, wanted)
            changed.append(part)
    return [part for part in changed if part != "decoder"]


def _config_for(auto_class: Any, name: str, **hub: Any) -> PretrainedConfig:
    """A model's configuration; for question answering with the two labels start and end, whatever its head had.

    Raises:
        DistilError: Transformers does not know the model type.
    """
    content, _ = PretrainedConfig.get_config_dict(name, **hub)
    model_type = content.get("model_type")
    if not isinstance(model_type, str):
        raise DistilError(f"{name}: config.json has no model_type: take the config.json of the original model")
    import_own_models()
    if model_type not in CONFIG_MAPPING:
        if content.get("auto_map"):
            raise DistilError(
                f"{name}: a {model_type!r} model comes with code of its own, which is never run: choose a model of a "
                "type that transformers has"
            )
        raise DistilError(
            f"{name}: transformers {transformers.__version__} knows no {model_type!r} models: choose another model, or "
            "a version of transformers that knows them"
        )
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    return question_answering_config(config) if auto_class is AutoModelForQuestionAnswering else config


def question_answering_config(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a configuration with the two labels of a question answering head, start and end."""
    config = copy.deepcopy(config)
    if config.num_labels != 2:
        config.num_labels = 2
    return config


@contextlib.contextmanager
def _loading_errors(name: str, what: str) -> Iterator[None]:
    """Raise the errors of loading a model, of whichever library, as a DistilError that names it."""
    try:
        yield
    except DistilError:
        raise
    except Exception as error:  # transformers, tokenizers, safetensors and huggingface_hub each raise their own
        check_tokenizer_file(name)
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise DistilError(
            f"cannot load a {what} from {name!r} ({reason}): give a directory with config.json, model.safetensors and "
            "tokenizer.json, or the name of a model on the hub (offline, in its local cache)"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with _without_bars():
            yield
    finally:
        transformers.logging.set_verbosity(level)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """No bars of transformers 5 over the weights of a model, which take a moment; those of downloads stay.

    Its public switch would turn off the downloads' as well.
    """
    library: Any = transformers.utils.logging
    active = library._tqdm_active
    library._tqdm_active = False
    try:
        yield
    finally:
        library._tqdm_active = active


def in_fp32(model: PreTrainedModel) -> PreTrainedModel:
    """A model in fp32, changed in place, and its configuration too: models that are made from it have its format."""
    model.config.dtype = torch.float32
    return model.float()


def with_plain_attention(
    model: PreTrainedModel, complete: Callable[[PreTrainedModel], object] = lambda _: None
) -> PreTrainedModel:
    """A copy of a model, in fp32 and eval mode, with eager attention, which exporters can trace.

    Args:
        model: The model.
        complete: Adds to a new model what the architecture alone does not have, such as adapters.
    """
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced
        plain = type(model)._from_config(config, attn_implementation="eager")
        complete(plain)
    plain.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    return plain.float().eval()


def training_arguments(**arguments: Any) -> TrainingArguments:
    """TrainingArguments without reporting integrations, and with one device per process."""
    made = TrainingArguments(report_to="none", **arguments)
    made._n_gpu = min(made.n_gpu, 1)  # `accelerate launch` starts one process per GPU
    return made
