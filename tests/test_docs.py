"""What README and site name exists: commands with their options, modules, names to import, Makefile targets."""

import ast
import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main

from augment.settings import AugmentSettings
from haystack_distill.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
RECIPE_KEYS = {field.name for field in fields(AugmentSettings)}
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of a page, indented blocks (tabs) included."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands(page: Path) -> list[list[str]]:
    """Each call of `haystack-distill` on a page, as its words."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines]
    inline = re.findall(r"`(haystack-distill [^`]*)`", page.read_text(encoding="utf-8"))
    calls += [shlex.split(" ".join(call.split())) for call in inline]
    return [call[1:] for call in calls if call[:1] == ["haystack-distill"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    for call in commands(page):
        command, words = root, [word for word in call if word != "COMMAND"]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        assert command is not root or words in ([], ["--help"]), f"no command {' '.join(call)}"
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, " ".join(call)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_can_be_imported(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [(node.module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [(alias.name, None) for alias in node.names]
            for module, name in names:
                if module.split(".")[0] in ("haystack_distill", "augment"):
                    require(module, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_dotted_names_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(r"\b((?:haystack_distill|augment)(?:\.\w+)+)", text):
        # `augment` is a section of a recipe, too: `augment.p_mask` is a key there.
        if not name.endswith((".py", ".md")) and name.split(".")[1] not in RECIPE_KEYS:
            require(*name.rsplit(".", 1))


def require(module: str, name: str | None) -> None:
    """Fails unless a module holds a name, or is itself a module by that name."""
    if name is not None and (ROOT / module.replace(".", "/") / f"{name}.py").exists():
        return
    if module.startswith("haystack_distill.integrations."):  # its framework may not be in this environment
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert name is None or re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), f"{module}.{name}"
        return
    try:
        holder = importlib.import_module(module)
    except ModuleNotFoundError:  # a class and its method
        outer, _, inner = module.rpartition(".")
        holder = getattr(importlib.import_module(outer), inner)
    if name is not None and not hasattr(holder, name):
        importlib.import_module(f"{module}.{name}")  # a package


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))) <= targets, page


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
