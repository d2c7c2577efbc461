"""The sample data in the package: small, varied, written for this project (Apache-2.0)."""

from importlib.resources import files
from pathlib import Path

from haystack_distill.errors import DistilError


def sample_path(split: str) -> Path:
    """The path of a SQuAD 2.0 file: "train" (643 questions) or "dev" (176 questions on other articles).

    Raises:
        DistilError: There is no such split.
    """
    if split not in ("train", "dev"):
        raise DistilError(f"split must be 'train' or 'dev', not {split!r}")
    return Path(str(files("haystack_distill") / "resources" / f"sample-{split}.json"))
