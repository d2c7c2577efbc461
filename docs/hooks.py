"""What the site needs beyond MkDocs' plugins. Sources are read, never imported: building the site needs no torch."""

import ast
import base64
import json
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent

# The rooms on the site: who trains comes before who looks inside. `utils`, `cli` and `resources` are no API.
ROOMS = {
    "training": "Runs: the trainers, their settings, checkpoints and directories.",
    "models": "Readers and language models: loading, answering, saving.",
    "students": "Making a student: cut from a teacher, pruned, fresh, or with a smaller vocabulary.",
    "objectives": "What a student learns, and the losses behind it.",
    "teachers": "Where the teacher's outputs come from.",
    "data": "Questions, windows, plain text and the order in which they are trained on.",
    "evaluation": "Measuring a reader.",
    "export": "ONNX, int8, and which student fits a budget.",
    "reporting": "The report, its figures and the model card.",
    "recipes": "A whole distillation from one file.",
    "integrations": "Haystack 1, 2 and 3.",
    "augment": "Multiplying training data.",
    "errors": "What is raised, and when.",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Equations, and the navigation of the pages that are generated."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": _equation})
    for section in config.nav or []:
        if "Get started" in section:
            section["Get started"] += [f"tutorials/{path.stem}.md" for path in _notebooks()]
        if "Methods" in section:
            section["Methods"] += [f"methods/{name}.md" for name in _methods()]
        if "API reference" in section:
            section["API reference"][1:1] = [f"reference/{room}.md" for room in ROOMS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each room, each notebook and each method that has none, and the changelog."""
    for room, summary in ROOMS.items():
        files.append(File.generated(config, f"reference/{room}.md", content=_room(room, summary)))
    for name, place in _methods().items():
        if not (ROOT / "docs" / "methods" / f"{name}.md").exists():
            files.append(File.generated(config, f"methods/{name}.md", content=_method(name, place)))
    for path in _notebooks():
        for name, content in _notebook(path).items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    files.append(File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=contributing))
    return files


def _equation(source: str, *_: Any, **__: Any) -> str:
    """A ```math block as MathML, which browsers draw without a script."""
    return f'<div class="equation">{convert(source, display="block")}</div>'


def _room(room: str, summary: str) -> str:
    """A page of API reference: the modules that hold public names, then the others."""
    root = ROOT / "augment" if room == "augment" else ROOT / "haystack_distill" / room
    paths = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if not path.stem.startswith("_") and _documents(path)
    ]
    modules.sort(key=lambda module: module not in _public_modules())
    return "\n\n".join([f"# {room}", summary, *(f"::: {module}" for module in modules)]) + "\n"


def _documents(path: Path) -> bool:
    """Whether a module has anything public with a docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    named = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return any(not node.name.startswith("_") and ast.get_docstring(node) for node in named)


def _public_modules() -> set[str]:
    """The modules that `haystack_distill` takes its public names from."""
    package = ast.parse((ROOT / "haystack_distill" / "__init__.py").read_text(encoding="utf-8"))
    for node in package.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):  # __getattr__ = lazy_names(...)
            names: dict[str, str] = ast.literal_eval(node.value.args[1])
            return set(names.values())
    raise ValueError("haystack_distill/__init__.py has no table of its public names")


def _notebooks() -> list[Path]:
    return sorted((ROOT / "tutorials").glob("*.ipynb"))


def _notebook(path: Path) -> dict[str, str | bytes]:
    """A notebook as a page and its images: each cell's source, and what it printed when it was stored."""
    parts, files = [], {}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"~~~~python\n{source}\n~~~~")
        for part, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                image = f"{path.stem}-{number}-{part}.png"
                files[image] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![A figure made by the cell above]({image})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"~~~~text\n{text}\n~~~~")
    name = f"tutorials/{path.name}"
    parts.insert(1, f"*This page is the notebook `{name}`, with the outputs that are stored in it.*")
    return {f"{path.stem}.md": "\n\n".join(parts) + "\n", **files}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the line `::methods` by a table of the methods, and each line `::options` by what a class takes.

    Links to what is a file in the repository and a page of the site go to the page.
    """
    markdown = re.sub(r"\]\(\.\./tutorials/(\w+)\.ipynb\)", r"](tutorials/\1.md)", markdown)
    markdown = markdown.replace("](../CONTRIBUTING.md", "](contributing.md")
    markdown = re.sub(r"^::methods$", lambda _: _table_of_methods(), markdown, flags=re.MULTILINE)
    return re.sub(r"^::options ([\w.]+)$", lambda found: _options(found[1]), markdown, flags=re.MULTILINE)


def _methods() -> dict[str, str]:
    """The registry of methods: names, and dotted names of their classes."""
    registry = ast.parse((ROOT / "haystack_distill" / "training" / "methods.py").read_text(encoding="utf-8"))
    for node in registry.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "METHODS":
            entries = ast.literal_eval(node.value.args[-1])  # type: ignore[union-attr]
            return {name: place.replace(":", ".") for name, place in entries.items()}
    raise LookupError("haystack_distill.training.methods has no METHODS")


def _table_of_methods() -> str:
    rows = []
    for name, place in _methods().items():
        title, _, learns = _class(place).docstring.value.partition("\n")[0].rstrip(".").partition(": ")
        rows.append(f"| [`{name}`]({name}.md) | {learns or title} | [`{place.rpartition('.')[2]}`][{place}] |")
    return "\n".join(["| method | what the student learns | class |", "| --- | --- | --- |", *rows])


def _method(name: str, place: str) -> str:
    """A method without a page of its own has its docstring for one; its place in the reference is another page."""
    sections = griffe.Docstring(_class(place).docstring.value).parse("google")
    text = "\n\n".join(section.value for section in sections if section.kind.value == "text")
    return f"# {name}\n\n{text}\n\n## Options\n\n::options {place}\n\nCode: [`{name}`][{place}].\n"


def _options(place: str) -> str:
    """What a dataclass takes, as a table; its docstring explains each field under `Args:`."""
    described = _class(place)
    helps = {
        entry.name: " ".join(str(entry.description).split())
        for section in griffe.Docstring(described.docstring.value, parent=described).parse("google")
        if section.kind.value == "parameters"
        for entry in section.value
    }
    rows = [
        f"| `{option.name}` | `{option.default}` | {helps[option.name]} |"
        for option in described.parameters
        if option.name in helps
    ]
    return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows])


def _class(place: str) -> griffe.Class:
    module, _, name = place.rpartition(".")
    return griffe.load(module, search_paths=[ROOT])[name]
