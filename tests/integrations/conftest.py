"""What the tests rewritten from Haystack 1's own share: its five documents, and each kind of reader of one local model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haystack_distill.utils.transformers_compat import ignore_adapters
from tests.conftest import SHARED

PEOPLE = [("Paul", "New York"), ("Carla", "Berlin"), ("Christelle", "Paris"), ("Camila", "Madrid"), ("Matteo", "Rome")]
SHORT = {"max_seq_len": 64, "doc_stride": 24, "max_query_length": 16, "use_gpu": False, "num_processes": 0}
KINDS = ("FARMReader", "DistilFARMReader", "DistilledReader")


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded teacher as a directory."""
    from haystack_distill.models.embedded_teacher import embedded_teacher

    return str(embedded_teacher(device="cpu").save(tmp_path_factory.mktemp("models") / "teacher"))


@pytest.fixture(scope="session", params=["embedded", pytest.param("minilm", marks=pytest.mark.real_data)])
def model(request: pytest.FixtureRequest, embedded: str) -> str:
    """A reader that answers, as a directory."""
    if request.param == "embedded":
        return embedded
    directory = SHARED / "models" / "minilm-l6-squad2"
    if not directory.exists():
        pytest.skip("../shared/models is not there")
    return str(directory)


@pytest.fixture(scope="session")
def make_reader() -> Callable[..., Any]:
    """A reader of one of KINDS, as Haystack 1's tests set theirs, but with short windows."""
    from haystack.nodes import FARMReader

    from haystack_distill.integrations.farm import DistilFARMReader
    from haystack_distill.integrations.farm_reader import DistilledReader

    kinds = dict(zip(KINDS, (FARMReader, DistilFARMReader, DistilledReader), strict=True))

    def make(kind: str, directory: str | Path, **arguments: Any) -> Any:
        with ignore_adapters():  # with peft, FARMReader cannot load what it saved itself; DistilFARMReader can
            return made(kind, directory, **arguments)

    def made(kind: str, directory: str | Path, **arguments: Any) -> Any:
        return kinds[kind](str(directory), **(SHORT | {"top_k_per_sample": 5, "progress_bar": False} | arguments))

    return make


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def reader(kind: str, model: str, make_reader: Callable[..., Any]) -> Any:
    """For tests that leave it as it is."""
    return make_reader(kind, model)


@pytest.fixture
def people() -> list:
    """The documents of Haystack 1's tests."""
    from haystack import Document

    return [
        Document(
            f"My name is {name} and I live in {city}",
            id=name.lower(),
            meta={"name": f"filename{page}", "page_number": page},
        )
        for page, (name, city) in enumerate(PEOPLE, 1)
    ]
