"""What CONTRIBUTING.md shows holds for the code as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .graphs import ROOT


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
