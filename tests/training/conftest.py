"""What the tests of training share: data, a pair of readers, and a run that was interrupted."""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haystack_distill import Reader, ReaderTrainer
from tests.training.helpers import Killed, MakeReader, kill_at_loss, settings


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection() -> Iterator[None]:
    """Trainer collects garbage in every run; all that is imported by now need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def data(squad_file: Path, tmp_path: Path) -> Path:
    """21 questions in 3 articles: as many windows as no power of two divides."""
    content = json.loads(squad_file.read_text())
    articles = []
    for copy in range(3):
        article = json.loads(json.dumps(content["data"][0]))
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [qa | {"id": f"{qa['id']}-{copy}"} for qa in paragraph["qas"]]
        articles.append(article)
    articles[-1]["paragraphs"][-1]["qas"] = articles[-1]["paragraphs"][-1]["qas"][:1]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}))
    return path


@pytest.fixture
def pair(tiny_reader: MakeReader) -> Callable[[], tuple[Reader, Reader]]:
    """A student and a wider, deeper teacher: intermediate layers need projections."""

    def make() -> tuple[Reader, Reader]:
        student = tiny_reader(seed=1, num_hidden_layers=2, hidden_size=16)
        return student, tiny_reader(seed=0, num_hidden_layers=4, hidden_size=32)

    return make


@pytest.fixture
def killed_distillation(pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a distillation run that died in its second epoch."""
    student, teacher = pair()
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 9)
        with pytest.raises(Killed):
            ReaderTrainer(
                student, tmp_path / "run", settings(checkpoint_every="epoch")
            ).distil_intermediate_layers_from(teacher, data)
    return tmp_path / "run"
