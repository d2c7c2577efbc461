"""Our word-level augmentation against nlpaug's and textattack's nearest, on the same texts.

    .venv/farm/bin/python benchmarks/augment_others.py --squad train-v1.1.json.gz --others PYTHON

`--others` is the Python of an environment with nlpaug and textattack. Theirs need no downloads here: nlpaug's
`RandomWordAug` (substitute by a mask token, swap) and textattack's `SwapAugmenter` and `DeletionAugmenter`. Each edits
about a fifth of the words of a context, as ours does; they know nothing of answers. Arms alternate, in processes of
their own; imports and loading are not timed, tagging is.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHARE = 0.2


def nlpaug_mask(texts: list[str], factor: int) -> int:
    """Words replaced by a mask token."""
    import nlpaug.augmenter.word as naw

    augmenter = naw.RandomWordAug(action="substitute", aug_p=SHARE, aug_max=None, target_words=["[MASK]"])
    return sum(len(augmenter.augment(text, n=factor - 1)) + 1 for text in texts)


def nlpaug_swap(texts: list[str], factor: int) -> int:
    """Words swapped with their neighbours."""
    import nlpaug.augmenter.word as naw

    augmenter = naw.RandomWordAug(action="swap", aug_p=SHARE, aug_max=None)
    return sum(len(augmenter.augment(text, n=factor - 1)) + 1 for text in texts)


def textattack_swap(texts: list[str], factor: int) -> int:
    """Words swapped."""
    from textattack.augmentation import SwapAugmenter

    augmenter = SwapAugmenter(pct_words_to_swap=SHARE, transformations_per_example=factor - 1)
    return sum(len(augmenter.augment(text)) + 1 for text in texts)


def textattack_delete(texts: list[str], factor: int) -> int:
    """Words deleted."""
    from textattack.augmentation import DeletionAugmenter

    augmenter = DeletionAugmenter(pct_words_to_swap=SHARE, transformations_per_example=factor - 1)
    return sum(len(augmenter.augment(text)) + 1 for text in texts)


def ours(texts: list[str], factor: int) -> int:
    """Masking and POS-guided replacement, with answers kept in place (there are none here), counting included."""
    from augment.augmenter import Augmenter
    from augment.settings import AugmentSettings

    nothing = {"text": [], "answer_start": []}
    rows = [
        {"id": str(number), "context": text, "question": "?", "answers": nothing} for number, text in enumerate(texts)
    ]
    augmenter = Augmenter.of(rows, AugmentSettings(multiplication_factor=factor, augment="context"))
    return sum(len(augmenter(row)) for row in rows)


ARMS: dict[str, Callable[[list[str], int], int]] = {
    "ours": ours,
    "nlpaug-mask": nlpaug_mask,
    "nlpaug-swap": nlpaug_swap,
    "textattack-swap": textattack_swap,
    "textattack-delete": textattack_delete,
}


def main(squad: Path, others: Path, contexts: int, more: int, factor: int, repeats: int) -> None:
    """Time every arm and print rows a second."""
    from haystack_distill.data.squad.json_files import questions_in_file

    seen: dict[str, None] = {}
    for question in questions_in_file(squad):
        seen[question.paragraph["context"]] = None
        if len(seen) == more:
            break
    texts = list(seen)
    rates: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(repeats):
        for name in ARMS:
            python, number = (sys.executable, more) if name == "ours" else (str(others), contexts)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "texts.json"
                path.write_text(json.dumps(texts[:number]), encoding="utf-8")
                done = subprocess.run(
                    [python, __file__, "--arm", name, str(path), str(factor)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1]}")
                continue
            rates[name].append(float(done.stdout.split()[-1]))
    best = statistics.median(rates["ours"])
    for name, found in rates.items():
        if found:
            middle = statistics.median(found)
            spread = f"({min(found):,.1f} to {max(found):,.1f})"
            print(f"{name:18} {middle:10,.1f} rows/s {spread}, ours is {best / middle:,.1f} times")


def _arm(name: str, path: str, factor: str) -> None:
    """One arm, in this process: prints rows a second."""
    texts = json.loads(Path(path).read_text(encoding="utf-8"))
    ARMS[name](texts[:1], 2)  # imports and loading
    began = time.monotonic()
    rows = ARMS[name](texts, int(factor))
    print(rows / (time.monotonic() - began))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--arm"]:
        _arm(*sys.argv[2:5])
    else:  # argparse, because the environment of the others has no typer
        parser = argparse.ArgumentParser(description=main.__doc__)
        parser.add_argument("--squad", type=Path, required=True, help="SQuAD v1.1 training file")
        parser.add_argument("--others", type=Path, required=True, help="Python of the others' environment")
        parser.add_argument("--contexts", type=int, default=4, help="contexts for the others")
        parser.add_argument("--more", type=int, default=400, help="contexts for ours, which is quick")
        parser.add_argument("--factor", type=int, default=20)
        parser.add_argument("--repeats", type=int, default=3)
        main(**vars(parser.parse_args()))
