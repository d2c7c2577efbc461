"""The sample data that comes with the package: small, varied, written for this project (Apache-2.0)."""

from importlib.resources import files
from pathlib import Path


def sample_path(split: str) -> Path:
    """The sample's SQuAD 2.0 file: "train" (643 questions) or "dev" (176 questions, on other articles)."""
    if split not in ("train", "dev"):
        raise ValueError(f"the sample has the splits 'train' and 'dev', not {split!r}")
    return Path(str(files("haystack_distill") / "resources" / f"sample-{split}.json"))
