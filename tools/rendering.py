"""Lines and pages of writing, set in the faces of a folder of fonts: nothing that the package draws itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from common import ROOT, ToolError
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from onnxfuse.tensors import Array

CHARACTERS = 26
"""Of a line, at most."""
NUMBERS, DARK = 0.3, 0.8
"""Shares of lines that begin with a number, and that are darker than what is behind."""
SIZES, APART = (11, 34), (1.2, 3.0)
"""Of a page's letters, in pixels, and the distance of lines in units of that."""
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
"""By which pages are normalised."""


def faces_in(folder: Path) -> list[Path]:
    """Its fonts.

    Raises:
        ToolError: there are none.
    """
    found = sorted(f for f in folder.glob("*.ttf") if "Math" not in f.name)
    if not found:
        raise ToolError(f"{folder}: no .ttf files; give a folder with some by --fonts")
    return found


def texts(rng: np.random.Generator) -> Iterator[str]:
    """A few words that follow each other in the licence."""
    words = re.findall(r"[A-Za-z]{2,12}", (ROOT / "LICENSE").read_text())
    while True:
        start = int(rng.integers(0, len(words) - 6))
        line = words[start : start + int(rng.integers(1, 5))]
        number = [str(rng.integers(1, 10 ** rng.integers(1, 6)))] if rng.random() < NUMBERS else []
        yield " ".join(number + line)[:CHARACTERS].strip()


def rendered(text: str, fonts: Sequence[Path], height: int, width: int, rng: np.random.Generator) -> Array:
    """(3, H, W) from −1 to 1, as high as the image, zeros behind it."""
    font = ImageFont.truetype(str(fonts[int(rng.integers(len(fonts)))]), int(rng.integers(24, 36)))
    light, dark = rng.integers(170, 256, 3), rng.integers(0, 90, 3)
    ground, ink = (light, dark) if rng.random() < DARK else (dark, light)
    left, top, right, bottom = (int(n) for n in font.getbbox(text))
    image = Image.new("RGB", (right - left + 12, bottom - top + int(rng.integers(6, 14))), tuple(ground.tolist()))
    ImageDraw.Draw(image).text((6 - left, 4 - top), text, font=font, fill=tuple(ink.tolist()))
    columns = min(width, max(8, image.width * height // image.height))
    pixels = np.asarray(image.resize((columns, height), Image.Resampling.BILINEAR), np.float32) / 127.5 - 1
    noisy = np.clip(pixels + rng.uniform(0, 0.1) * rng.standard_normal(pixels.shape), -1, 1)
    return np.pad(noisy.transpose(2, 0, 1), ((0, 0), (0, 0), (0, width - columns))).astype(np.float32)


def page(fonts: Sequence[Path], height: int, width: int, rng: np.random.Generator) -> Array:
    """(3, H, W) normalised as most networks have it: lines below each other on paper, or on a blurred pattern."""
    dark = rng.random() >= DARK
    ground = rng.uniform(0, 110, 3) if dark else rng.uniform(120, 250, 3)
    pattern = rng.uniform(-1, 1, (8, 8, 1)) * (0, 40)[int(rng.integers(2))]
    pixels = np.clip(ground + pattern, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    draw, lines, top = ImageDraw.Draw(image), texts(rng), int(rng.integers(5, 60))
    while True:
        size = int(np.exp(rng.uniform(*np.log(SIZES))))
        if top + 1.5 * size > height:
            break
        ink = tuple(rng.integers(180, 256, 3).tolist() if dark else rng.integers(0, 80, 3).tolist())
        font = ImageFont.truetype(str(fonts[int(rng.integers(len(fonts)))]), size)
        draw.text((int(rng.integers(5, width // 2)), top), next(lines), font=font, fill=ink)
        top += int(size * rng.uniform(*APART))
    blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    noisy = np.asarray(blurred, np.float64) + rng.uniform(0, 8) * rng.standard_normal((height, width, 3))
    return np.asarray(((np.clip(noisy, 0, 255) / 255 - MEAN) / DEVIATION).transpose(2, 0, 1), np.float32)
