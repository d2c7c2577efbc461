"""Ours against what a user would take instead, side by side: distilling and serving, in one run on one machine.

    make bench TEACHER=../shared/models/minilm-l6-squad2 SQUAD=../shared/data/squad

Every arm is a process of its own, in an environment built from pinned packages, and the arms alternate. Writes
RESULTS.md, results.json and results.png beside this file. A run that is interrupted goes on where it was (`--output`).
"""

import json
import os
import platform
import random
import statistics
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from environments import ROOT, python_of
from watch import matrix_gigaflops

from haystack_distill import Reader, WindowSettings, students
from haystack_distill.export import export_reader
from haystack_distill.files import write_aside, write_json
from haystack_distill.runs import versions
from haystack_distill.squad import load_examples, write_squad

HERE = Path(__file__).resolve().parent
WINDOWS = WindowSettings(max_seq_len=384, doc_stride=128)
# Arm, method, environment.
TRAINING = [
    ("ours", "answers", "farm"),
    ("farm", "answers", "farm"),
    ("textbrewer", "answers", "textbrewer"),
    ("textbrewer, our batches", "answers", "textbrewer"),
    ("trainer", "answers", "farm"),
    ("ours", "layers", "farm"),
    ("farm", "layers", "farm"),
]
# Name, framework, backend, which reader.
SERVING = [
    ("FARMReader, teacher", "farm", "theirs", "teacher"),
    ("ours, teacher, torch", "farm", "torch", "teacher"),
    ("ours, teacher, onnx", "farm", "onnx", "teacher"),
    ("ours, student, onnx", "farm", "onnx", "student"),
    ("ours, student, onnx-int8", "farm", "onnx-int8", "student"),
    ("TransformersExtractiveReader, teacher", "haystack", "theirs", "teacher"),
    ("ours, teacher, torch", "haystack", "torch", "teacher"),
    ("ours, teacher, onnx", "haystack", "onnx", "teacher"),
    ("ours, student, onnx", "haystack", "onnx", "student"),
    ("ours, student, onnx-int8", "haystack", "onnx-int8", "student"),
]


def call(script: str, environment: str, arguments: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Run a script in an environment; what it prints last is the result."""
    command = [str(python_of(environment)), str(HERE / script)]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    settings = {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "TOKENIZERS_PARALLELISM": "false"}
    settings["HAYSTACK_DISTILL_CACHE"] = str(cache)
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def questions_with_passages(squad: Path, wanted: int, passages: int = 10) -> list[dict[str, Any]]:
    """Questions of the dev set, each with its own passage among others of its article, as a retriever would bring."""
    examples = load_examples(squad)
    chosen = random.Random(42)
    contexts: dict[str, list[str]] = {}
    for title, context in zip(examples["title"], examples["context"], strict=True):
        of_title = contexts.setdefault(title, [])
        if context not in of_title:
            of_title.append(context)
    rows = []
    for row in examples.select(sorted(chosen.sample(range(len(examples)), wanted))):
        others = [text for text in contexts[row["title"]] if text != row["context"]]
        beside = chosen.sample(others, min(passages - 1, len(others)))
        together = [row["context"], *beside]
        chosen.shuffle(together)
        rows.append({"question": row["question"], "passages": together})
    return rows


def main(
    teacher: Annotated[Path, typer.Option(help="reader directory of the teacher")],
    squad: Annotated[Path, typer.Option(help="directory with train-v1.1.json.gz and dev-v1.1.json.gz")],
    output: Annotated[Path, typer.Option(help="where readers and finished runs are kept")] = ROOT / ".bench",
    questions: Annotated[int, typer.Option(help="training questions")] = 600,
    dev_questions: Annotated[int, typer.Option(help="questions that trained students are measured on")] = 500,
    asked: Annotated[int, typer.Option(help="questions that readers are served")] = 500,
    asked_slow: Annotated[int, typer.Option(help="of those, how many the slow readers get")] = 60,
    runs: int = 3,
    callers: int = 8,
) -> None:
    """Run what is not done yet and write the results."""
    output.mkdir(parents=True, exist_ok=True)
    data, started = output / "train.json", output / "student"
    train, dev = squad / "train-v1.1.json.gz", squad / "dev-v1.1.json.gz"
    base = Reader.load(teacher, windows=WINDOWS, device="cpu", precision="fp32")
    if not data.exists():
        write_squad(load_examples(train).select(range(questions)), data, version="1.1")
        students.from_teacher(base, layers=3).save(started)
    measured = load_examples(load_examples(dev).select(range(dev_questions)))
    found: dict[str, Any] = {"machine": machine(), "training": {}, "serving": {}}

    def kept(name: str, make: Any) -> Any:
        path = output / "runs" / f"{name.replace(' ', '-').replace(',', '')}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_json(path, make())
        return json.loads(path.read_text())

    for run in range(runs):
        for arm, method, environment in TRAINING:
            made = output / "made" / f"{arm}-{method}-{run}".replace(" ", "-").replace(",", "")

            def train_once(
                arm: str = arm, method: str = method, environment: str = environment, made: Path = made
            ) -> Any:
                arguments = {"arm": arm, "method": method, "teacher": teacher.resolve(), "student": started}
                arguments |= {"data": data, "output": made}
                result = call("train_arm.py", environment, arguments, output / "caches" / made.name)
                if made.name.endswith("-0"):
                    result["f1"] = Reader.load(made, windows=WINDOWS, device="cpu").evaluate(measured)["f1"]
                print(f"{arm}, {method}: {result['seconds']:.1f} s", flush=True)
                return result

            result = kept(f"train-{arm}-{method}-{run}", train_once)
            found["training"].setdefault(f"{arm} / {method}", []).append(result)

    found["gigaflops_needed"] = gigaflops_needed(base, data, Reader.load(started, windows=WINDOWS, device="cpu"))
    served = {"teacher": output / "teacher", "student": output / "served"}

    def export() -> Any:
        export_reader(base, served["teacher"])
        trained = Reader.load(output / "made" / "ours-answers-0", windows=WINDOWS, device="cpu", precision="fp32")
        return export_reader(trained, served["student"], data=measured)

    found["export"] = kept("export", export)
    everything = questions_with_passages(dev, asked)
    for name, number in (("asked", asked), ("asked-slow", asked_slow)):
        write_json(output / f"{name}.json", everything[:number])
    for run in range(runs):
        for name, framework, backend, which in SERVING:
            slow = backend == "theirs" or which == "teacher"

            def serve_once(
                name: str = name,
                framework: str = framework,
                backend: str = backend,
                which: str = which,
                slow: bool = slow,
                run: int = run,
            ) -> Any:
                arguments = {"framework": framework, "backend": backend, "model": served[which]}
                arguments["questions"] = output / ("asked-slow.json" if slow else "asked.json")
                arguments["callers"] = callers if run == 0 else 0
                result = call("serve_arm.py", framework, arguments, output / "caches" / "serving")
                print(f"{framework}: {name}: {result['passages_per_second']:.1f} passages/s", flush=True)
                return result

            result = kept(f"serve-{framework}-{name}-{run}", serve_once)
            found["serving"].setdefault(f"{framework}: {name}", []).append(result)
    write_json(HERE / "results.json", found)
    write_aside(HERE / "RESULTS.md", lambda aside: aside.write_text(page(found, questions, asked, asked_slow)))
    plot(found, HERE / "results.png")


def gigaflops_needed(teacher: Reader, data: Path, student: Reader) -> float:
    """Arithmetic of one epoch without padding: the teacher's pass, the student's and twice that for its gradients."""
    lengths = teacher.cut(load_examples(data)).lengths.astype(float)

    def forward(reader: Reader) -> float:
        config = reader.model.config
        width, inner = config.hidden_size, config.intermediate_size
        products = 2 * lengths * (4 * width**2 + 2 * width * inner) + 4 * lengths**2 * width
        return config.num_hidden_layers * float(products.sum())

    return (forward(teacher) + 3 * forward(student)) / 1e9


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "gigaflops_fp32": matrix_gigaflops(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions("onnxruntime", "farm-haystack"),
    }


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def page(found: dict[str, Any], questions: int, asked: int, asked_slow: int) -> str:
    """RESULTS.md."""
    at = found["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    lines = [
        "# Measured side by side",
        "",
        (
            f"{at['processor']}, {at['cores']} cores, {at['gigaflops_fp32']:.0f} GFLOP/s in fp32 matrix products "
            f"(measured), {at['date']}, Python {at['python']}, {packages}. Made by `make bench`; medians, with the "
            "lowest and highest in brackets."
        ),
        "",
        "## Distilling",
        "",
        (
            f"{questions} questions of SQuAD v1.1, one epoch, batch 16, windows of 384, teacher MiniLM-L6, "
            "student its even layers. From the file to the trained student, without imports or loading."
        ),
        "",
        "| method | tool | seconds | ours is | F1 | peak MB | reading | teacher | forward | backward | step | rest |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found["training"].items():
        tool, method = name.split(" / ")
        seconds = [run["seconds"] for run in runs]
        ours = median([run["seconds"] for run in found["training"][f"ours / {method}"]])
        phases = [
            f"{median([run['phases'].get(part, 0.0) for run in runs]):.1f}"
            for part in ("reading", "teacher", "student", "backward", "optimiser", "rest")
        ]
        ratio = "" if tool == "ours" else f"{median(seconds) / ours:.2f} times as fast"
        lines.append(
            f"| {method} | {tool} | {spread(seconds)} | {ratio} | {runs[0]['f1']:.1f} | "
            f"{median([run['peak_megabytes'] for run in runs]):.0f} | {' | '.join(phases)} |"
        )
    seconds = median([run["seconds"] for run in found["training"]["ours / answers"]])
    share = found["gigaflops_needed"] / seconds / at["gigaflops_fp32"]
    lines += [
        "",
        (
            f"Teacher and student need {found['gigaflops_needed']:,.0f} GFLOP for this, padding not counted: our run "
            f"for answers reaches {share:.0%} of the machine's measured matrix throughput, reading included."
        ),
        "",
        "## Serving",
        "",
        (
            "Questions of SQuAD v1.1 dev, one at a time, each with ten passages of its article, in the framework's "
            f"pipeline; {asked} questions, {asked_slow} of them for the teacher. `p50`, `p99`: milliseconds of a "
            "question, alone and with eight callers at once."
        ),
        "",
        "| framework | reader | passages/s | times theirs | p50 | p99 | p50 of 8 | p99 of 8 | other answers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found["serving"].items():
        framework, reader = name.split(": ")
        rate = [run["passages_per_second"] for run in runs]
        theirs = next(v for k, v in found["serving"].items() if k.startswith(framework) and "ours" not in k)
        ratio = median(rate) / median([run["passages_per_second"] for run in theirs])
        together = runs[0]["together"]
        many = (
            f"{together['p50']:.0f} | {together['p99']:.0f} | {together['other_answers']}"
            if "error" not in together
            else f"| | {together['error'][:60]}"
        )
        lines.append(
            f"| {framework} | {reader} | {spread(rate)} | {ratio:.1f} | {median([run['p50'] for run in runs]):.0f} | "
            f"{median([run['p99'] for run in runs]):.0f} | {many} |"
        )
    lines += [
        "",
        "## Export",
        "",
        "The distilled student on the dev questions:",
        "",
        "| backend | MB | EM | F1 |",
        "|---|---|---|---|",
    ]
    for backend, entry in found["export"]["backends"].items():
        megabytes = f"{entry['megabytes']:.1f}" if "megabytes" in entry else ""
        lines.append(f"| {backend} | {megabytes} | {entry['metrics']['exact']:.1f} | {entry['metrics']['f1']:.1f} |")
    return "\n".join([*lines, ""])


def spread(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def plot(found: dict[str, Any], path: Path) -> None:
    """Both tables as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    for axes, part, of, unit in (
        (figure.add_subplot(2, 1, 1), "training", "seconds", "seconds for one distillation"),
        (figure.add_subplot(2, 1, 2), "serving", "passages_per_second", "passages a second"),
    ):
        names = list(found[part])[::-1]
        axes.barh(
            names,
            [median([run[of] for run in found[part][name]]) for name in names],
            color=["#2a6f97" if "ours" in name and "our batches" not in name else "#b0b0b0" for name in names],
        )
        axes.set_xlabel(unit)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(main)
