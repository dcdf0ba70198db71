"""Make models/: small trained models with labelled test images and unlabelled calibration images, from the assets.

python tools/make_models.py [--assets ../shared/assets] [--out models]

Run again it makes the same files. The licences and models/README.md are written by hand and left alone.
"""

from __future__ import annotations

import argparse
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ASSETS, MODELS, ToolError, entry
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
KEPT = ("lenet300_fmnist", "resnet20_fmnist", "svhn")
SEED = 0
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time stamp of the members of an archive: equal content gives equal files."""


@dataclass(frozen=True)
class DataSet:
    """One data set, and how much of it is kept.

    Attributes:
        name: of the files, NAME_test.npz and NAME_calib.npz.
        mean, std: per channel, of pixels from 0 to 1.
        per_class: test images of each class.
        calibration: unlabelled images, or None for all.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    per_class: int
    calibration: int | None


# mean and std are those that each model was trained with; svhn's images hardly compress, so fewer are kept
DATA = (
    DataSet("fmnist", (0.2860,), (0.3530,), 100, None),
    DataSet("svhn", (0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197), 50, 128),
)


def stratified(y: Labels, per_class: int) -> Labels:
    """Positions, ascending, of `per_class` random samples of each class.

    Raises:
        ToolError: a class has too few.
    """
    rng = np.random.default_rng(SEED)
    chosen = []
    for c in np.unique(y):
        members = np.flatnonzero(y == c)
        if len(members) < per_class:
            raise ToolError(f"class {c} has {len(members)} samples, {per_class} are wanted")
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def save(path: Path, **arrays: NDArray[Any]) -> None:
    """Like np.savez_compressed, but the same arrays always give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def disjoint(a: Images, b: Images) -> bool:
    """Whether no image of `a` is in `b`."""
    return {x.tobytes() for x in a}.isdisjoint({x.tobytes() for x in b})


def make(data: DataSet, assets: Path, out: Path) -> None:
    """Write the test and calibration files of one data set.

    Raises:
        ToolError: an image is in both.
    """
    with np.load(assets / "data" / f"{data.name}_test.npz") as test:
        chosen = stratified(test["y"], data.per_class)
        x, y = test["x"][chosen], test["y"][chosen]
    with np.load(assets / "data" / f"{data.name}_calib.npz") as calibration:
        unlabelled = calibration["x"][: data.calibration]
    if not disjoint(x, unlabelled):
        raise ToolError(f"{data.name}: an image is both in the test and the calibration data")
    to_bytes = np.float32(255)  # images are stored as uint8
    how = {
        "mean": np.asarray(data.mean, np.float32) * to_bytes,
        "std": np.asarray(data.std, np.float32) * to_bytes,
        "layout": np.asarray("NCHW"),
    }
    save(out / f"{data.name}_test.npz", x=x, y=y, **how)
    save(out / f"{data.name}_calib.npz", x=unlabelled, **how)


def main() -> None:
    """Read the arguments, make all files, print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder with models/ and data/")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for key in KEPT:
        shutil.copyfile(args.assets / "models" / f"{key}.onnx", args.out / f"{key}.onnx")
    for data in DATA:
        make(data, args.assets, args.out)
    made = sorted([*args.out.glob("*.onnx"), *args.out.glob("*.npz")])
    for path in made:
        print(f"{path.name:<24} {path.stat().st_size / 1e6:6.2f} MB")
    print(f"{'all':<24} {sum(p.stat().st_size for p in made) / 1e6:6.2f} MB")


if __name__ == "__main__":
    entry(main)
