"""A folder of images → one array, preprocessed as a model was trained. Needs Pillow, the extra `images`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UsageError, one_line
from .tensors import Array

SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())
WIDE = ("I", "F")
"""What Pillow's modes of 16 and 32 bits start with; made one of 8, they are cut off at 255."""
MODES: Mapping[int, str] = {1: "L", 3: "RGB"}
"""Channels that a model takes → Pillow's mode."""
CHANNEL_AXIS: Mapping[str, int] = {"nchw": 1, "nhwc": 3}
KEYS = "mean=…,std=…,scale=…,layout=nchw|nhwc,order=rgb|bgr"


@dataclass(frozen=True)
class Preprocess:
    """From pixels of 0…255 to what a model takes: (pixel · scale − mean) / std.

    Attributes:
        mean, std: one number, or one for each channel, after scaling.
        scale: 1/255 for a model that takes floats, 1 for one that takes bytes, unless given.
        layout: 'nchw' or 'nhwc'; None: where the model's shape has 1 or 3 channels.
        order: of the colours, 'rgb' or 'bgr'.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float | None = None
    layout: str | None = None
    order: str = "rgb"


def parse(text: str) -> Preprocess:
    """`mean=0.485,0.456,0.406,std=0.229,0.224,0.225,layout=nchw`: every part may be left out.

    Raises:
        UsageError: an unknown key or an impossible value.
    """
    given: dict[str, list[str]] = {}
    key = ""
    for item in filter(None, text.split(",")):
        head, equals, value = item.rpartition("=")
        key = head.strip() if equals else key
        given.setdefault(key, []).append(value.strip())
    unknown = [k for k in given if k not in _READERS]
    if unknown:
        raise UsageError(f"--calib-preprocess {text!r}: {unknown[0]!r} is not known; give {KEYS}")
    how = Preprocess(**{k: _READERS[k](k, v) for k, v in given.items()})
    if min(how.std) <= 0 or (how.scale is not None and how.scale <= 0):
        raise UsageError(f"--calib-preprocess {text!r}: std and scale must be above 0")
    return how


def _numbers(key: str, values: Sequence[str]) -> tuple[float, ...]:
    try:
        found = tuple(map(float, values))
    except ValueError:
        found = (float("nan"),)
    if not np.isfinite(found).all() or len(found) not in MODES:
        raise UsageError(f"--calib-preprocess {key}={','.join(values)}: give one number, or one for each of 3 channels")
    return found


def _number(key: str, values: Sequence[str]) -> float:
    found = _numbers(key, values)
    if len(found) > 1:
        raise UsageError(f"--calib-preprocess {key}={','.join(values)}: give one number")
    return found[0]


def _one_of(*names: str) -> Any:
    def read(key: str, values: Sequence[str]) -> str:
        if len(values) != 1 or values[0].lower() not in names:
            raise UsageError(f"--calib-preprocess {key}={','.join(values)}: choose {' or '.join(names)}")
        return values[0].lower()

    return read


_READERS: Mapping[str, Any] = {
    "mean": _numbers,
    "std": _numbers,
    "scale": _number,
    "layout": _one_of(*CHANNEL_AXIS),
    "order": _one_of("rgb", "bgr"),
}


def load_images(
    folder: Path, how: Preprocess, dims: Sequence[int], probed: Sequence[int], dtype: np.dtype[Any], most: int
) -> Array:
    """(samples, …) the images of a folder and those below it, in order of their paths, at most `most`, evenly spaced.

    Each is scaled until it covers the model's height and width, and what stands out is cut off on both sides.

    Args:
        dims: the model's input shape, 0 where it is open; then the size is that of `probed`.
        dtype: of the input: floats, or bytes.

    Raises:
        UsageError: no images, one that cannot be read, a model that takes no images of this kind, or no Pillow.
    """
    pillow = _pillow()
    layout = _layout(how, dims)
    channels = dims[CHANNEL_AXIS[layout]]
    if dtype.kind != "f" and dtype != np.uint8:
        raise UsageError(f"the model takes {dtype}, which no image is; give --calib an .npz file")
    if any(len(v) not in (1, channels) for v in (how.mean, how.std)):
        raise UsageError(
            f"--calib-preprocess: the model takes {channels} channels; give as many numbers for mean and std"
        )
    height, width = (p for axis, p in enumerate(probed) if axis not in (0, CHANNEL_AXIS[layout]))
    files = images_in(folder)
    if not files:
        raise UsageError(f"{folder}: has no images ({', '.join(sorted(SUFFIXES))})")
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), most)).round().astype(int)]
    pixels = np.stack([_pixels(pillow, path, MODES[channels], (width, height)) for path in chosen])
    return _preprocessed(pixels, how, layout, dtype)


def images_in(folder: Path) -> list[Path]:
    """All images in a folder and those below it."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UsageError("a folder of images needs Pillow: pip install 'onnxfuse[images]', or give .npz") from error
    return Image, ImageOps


def _layout(how: Preprocess, dims: Sequence[int]) -> str:
    """Where the model has its channels."""
    fit = [name for name, axis in CHANNEL_AXIS.items() if dims[axis] in MODES and how.layout in (None, name)]
    if len(fit) != 1:
        shape = ", ".join(str(d or "?") for d in dims)
        wanted = f"in layout {how.layout}" if how.layout else "on one of axes 1 and 3; say layout=nchw or layout=nhwc"
        raise UsageError(f"the model's input [{shape}] does not have 1 or 3 channels {wanted}")
    return fit[0]


@contextmanager
def _unwarned() -> Iterator[None]:
    """Pillow warns of many pixels, of tags that it cannot read, of a palette with transparency: the pixels are fine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _pixels(pillow: tuple[Any, Any], path: Path, mode: str, size: tuple[int, int]) -> Array:
    """(H, W, C) uint8."""
    opener, operations = pillow
    try:
        with _unwarned(), opener.open(path) as image:
            if image.mode.startswith(WIDE):
                raise ValueError(f"its pixels (mode {image.mode}) have more than 8 bits; give 8-bit images, or .npz")
            fitted = operations.fit(operations.exif_transpose(image).convert(mode), size)
    except (OSError, ValueError, SyntaxError, opener.DecompressionBombError) as error:
        raise UsageError(f"{path}: cannot be read as an image: {one_line(error)}") from error
    return np.atleast_3d(np.asarray(fitted, dtype=np.uint8))


def _preprocessed(pixels: Array, how: Preprocess, layout: str, dtype: np.dtype[Any]) -> Array:
    """(N, H, W, C) bytes as the model takes them."""
    pixels = pixels[..., ::-1] if how.order == "bgr" else pixels
    scale = how.scale or (1 if dtype == np.uint8 else 1 / 255)
    values = (pixels * np.float32(scale) - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
    if dtype == np.uint8:
        values = np.clip(np.round(values), 0, 255)
    return np.ascontiguousarray(np.moveaxis(values, 3, CHANNEL_AXIS[layout]), dtype=dtype)
