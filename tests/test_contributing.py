"""What CONTRIBUTING.md and the package's own README say holds for the code as it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from .graphs import ROOT

PACKAGE = ROOT / "onnxfuse"


def hunks(diff: str) -> Iterator[tuple[str, list[str]]]:
    """(file, lines) of every hunk of a diff."""
    path = ""
    for part in re.split(r"^(?=--- |@@ )", diff, flags=re.MULTILINE):
        if part.startswith("--- "):
            path = part.splitlines()[1].removeprefix("+++ b/")
        elif part:
            yield path, part.splitlines()[1:]


def test_the_example_of_an_operator_applies() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    found = list(hunks(diff))
    assert [path for path, _ in found] == ["onnxfuse/rules/reduction.py", "tests/hard_texts.py"]
    for path, lines in found:
        before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        assert before in (ROOT / path).read_text()
        assert not any(line.startswith("-") for line in lines)


def imported(path: str, level: int) -> set[str]:
    """Modules of the package that a file imports, wherever in it that is."""
    nodes = ast.walk(ast.parse((PACKAGE / path).read_text()))
    found = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level == level]
    return {name for n in found for name in ([n.module.split(".")[0]] if n.module else [a.name for a in n.names])}


def test_no_module_imports_one_that_stands_after_it() -> None:
    listed = re.findall(r"`(\w+)(?:\.py|/)`", (PACKAGE / "README.md").read_text().split("\n\n", 2)[2])
    files = {f.stem for f in PACKAGE.glob("*.py")} - {"__init__", "__main__", "version"}
    assert sorted(listed) == sorted(files | {"rules"})
    before = {"version", "__version__"}
    for name in listed:
        rules = [f"rules/{f.name}" for f in (PACKAGE / "rules").glob("*.py")]
        needed = set().union(*(imported(f, 2) for f in rules)) if name == "rules" else imported(f"{name}.py", 1)
        assert needed <= before, f"{name} imports {needed - before}"
        before.add(name)
