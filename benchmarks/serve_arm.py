"""One reader in its pipeline, asked many questions one at a time, as JSON on the last line: `bench.py` calls it.

A question comes with ten passages, as a retriever would hand them over; every tool gets the same ones.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from haystack_distill.models.backends.exported import BACKENDS

SEQUENCE, STRIDE, TOP_K = 384, 128, 3
Ask = Callable[[str, list[str]], list[str]]


def farm(model: str, backend: str) -> Ask:
    """FARMReader in a Haystack 1 pipeline, or our node there."""
    from haystack import Document, Pipeline
    from haystack.nodes import FARMReader

    common: dict[str, Any] = {"max_seq_len": SEQUENCE, "doc_stride": STRIDE, "use_gpu": False, "top_k": TOP_K}
    if backend == "theirs":
        reader: Any = FARMReader(model, num_processes=0, progress_bar=False, **common)
    else:
        from haystack_distill.integrations.farm_reader import DistilledReader

        # By default it computes in fp32, as FARMReader; "auto" is fp32 too where the environment variable says so.
        reader = DistilledReader(model, backend=backend, precision="auto", **common)
    pipeline = Pipeline()
    pipeline.add_node(reader, name="Reader", inputs=["Query"])

    def ask(question: str, passages: list[str]) -> list[str]:
        documents = [Document(content=text, id=str(number)) for number, text in enumerate(passages)]
        return [answer.answer for answer in pipeline.run(question, documents=documents)["answers"]]

    return ask


def haystack(model: str, backend: str) -> Ask:
    """TransformersExtractiveReader in a Haystack 3 pipeline, or our component there."""
    from haystack import Document, Pipeline
    from haystack.utils import ComponentDevice

    device = ComponentDevice.from_str("cpu")
    if backend == "theirs":
        from haystack_integrations.components.readers.transformers import TransformersExtractiveReader

        reader: Any = TransformersExtractiveReader(
            model, device=device, top_k=TOP_K, max_seq_length=SEQUENCE, stride=STRIDE, no_answer=False
        )
    else:
        from haystack_distill.integrations.haystack import DistilledReader

        reader = DistilledReader(
            model,
            backend=backend,
            device=device,
            top_k=TOP_K,
            max_seq_length=SEQUENCE,
            stride=STRIDE,
            no_answer=False,
        )
    pipeline = Pipeline()
    pipeline.add_component("reader", reader)
    pipeline.warm_up()

    def ask(question: str, passages: list[str]) -> list[str]:
        documents = [Document(content=text) for text in passages]
        found = pipeline.run({"reader": {"query": question, "documents": documents}})
        return [answer.data for answer in found["reader"]["answers"]]

    return ask


def main() -> None:
    """Ask the questions of a file and time them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--framework", choices=["farm", "haystack"], required=True)
    parser.add_argument("--backend", choices=["theirs", *BACKENDS], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--callers", type=int, default=0)
    options = parser.parse_args()
    asked = json.loads(options.questions.read_text(encoding="utf-8"))
    ask = (farm if options.framework == "farm" else haystack)(options.model, options.backend)
    for one in asked[:3]:
        ask(**one)

    def timed(one: dict[str, Any]) -> tuple[float, list[str]]:
        began = time.perf_counter()
        answers = ask(**one)
        return time.perf_counter() - began, answers

    def summary(taken: list[float], wall: float) -> dict[str, float]:
        milliseconds = 1000 * np.array(taken)
        return {
            "passages_per_second": sum(len(one["passages"]) for one in asked) / wall,
            "p50": statistics.median(milliseconds),
            "p99": float(np.percentile(milliseconds, 99)),
        }

    began = time.perf_counter()
    alone = [timed(one) for one in asked]
    result: dict[str, Any] = summary([taken for taken, _ in alone], time.perf_counter() - began)
    result["seconds"] = [taken for taken, _ in alone]
    if options.callers:
        began = time.perf_counter()
        try:
            with ThreadPoolExecutor(options.callers) as callers:
                together = list(callers.map(timed, asked))
            result["together"] = summary([taken for taken, _ in together], time.perf_counter() - began)
            result["together"]["other_answers"] = sum(a[1] != b[1] for a, b in zip(alone, together, strict=True))
        except Exception as error:  # what a competitor does under load is a result
            result["together"] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
