"""The keywords of `fuse` and `ensemble`: documented once, for `help`, type checkers and editors alike."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ForwardRef, TypedDict, TypeVar

import numpy as np

from .errors import near
from .options import Options
from .origin import PathLike
from .patterns import listed
from .scores import Importance
from .sources import Source

if TYPE_CHECKING:
    from typing_extensions import Unpack

F = TypeVar("F", bound=Callable[..., Any])


class SharedKeywords(TypedDict, total=False):
    """What `fuse` and `ensemble` both take.

    Attributes:
        sparsity: fraction of channels removed from each group, 0 ≤ s < 1; n − int(n(1 − s)) of n go.
        method: 'auto' (the best known), 'intra-fusion' (the paper's), 'barycentric', 'fold', 'fold-variance', 'surgeon'
            or 'drop'.
        importance: which channels survive: 'l1', 'l2', 'lamp', 'taylor' or 'random'; your own scores, as an .npz file
            or a mapping with an array for each layer or group; or a function from `GroupView` to scores.
        exclude: regular expressions; nodes whose name matches keep their input and output channels.
        input_shapes: input name → shape, where dynamic dimensions cannot be guessed.
        input_ranges: input name → least and greatest value, such as (0, 255), where no graph tells what images have.
        provider: 'cpu', 'cuda' or another of onnxruntime's.
        seed: of the probe input and random importance.
        min_cosine: fail if any output's cosine similarity to the original's falls below: on `calib` its mean over the
            samples that are held out, else on random input and on synthetic samples that nothing was fitted to; a
            detector's on random input, with the original's picks if need be.
        round_to: 'auto' (widths that this provider's kernels like), or the number of which they should be multiples;
            1 gives exact widths.
        repair: refit what consumers read to what it was, on samples; None: for auto and surgeon, and with `calib`.
        calib: 64 to 512 unlabelled samples to measure on, in place of synthetic ones: an .npz file or a mapping with an
            array for each input, or a folder of images. 8 to 32 of them are not fitted to but compared on.
        calib_preprocess: of a folder of images, such as 'mean=0.5,std=0.5,layout=nchw' (see `images.parse`).
        external_data: write large weights to `<output>.data` beside the result; so it is, too, if the input has such a
            file, and above 2 GB.
    """

    sparsity: float | None
    method: str
    importance: Importance
    exclude: Sequence[str]
    input_shapes: Mapping[str, Sequence[int]] | None
    input_ranges: Mapping[str, Sequence[float]] | None
    provider: str
    seed: int
    min_cosine: float | None
    round_to: str | int
    repair: bool | None
    calib: Source | None
    calib_preprocess: str | None
    external_data: bool


class FuseKeywords(SharedKeywords, total=False):
    """What only `fuse` takes.

    Attributes:
        source_mass, target_mass: 'uniform' or 'importance'; for the transport methods only, like the next two.
        target: 'important' channels or means of a 'cluster'; barycentric defaults to 'cluster'.
        cost_norm: exponent p of the Lp ground cost, 1 or 2.
        only: regular expressions of group names: merge these only (and their families), whatever else is given.
        gradients: ∂L/∂w for each weight's name, an .npz file or a mapping; for taylor.
        scope: 'local' removes the same fraction everywhere; 'global' what costs least, at equal MACs. None: local for
            a sparsity, global for budgets.
        target_macs, target_params, target_size: budgets in place of a sparsity; 0.5 or '50%' of the original, or an
            amount such as '900M' or '5MB'. All that are given must hold. The size is that of all files of the model.
        ratio: 'REGEX=0.6' each, the sparsity of layers that match; later ones win.
        keep: regular expressions; layers that match keep the channels they make.
        from_plan: the plan of an earlier run, which says how many channels the groups it names keep.
        latency: time the original and the result.
        threads: of onnxruntime, for the timing; at most as many as this machine has.
        target_latency: budget like the others, as a share of the original's or a time such as '4ms'.
        max_error: largest absolute difference allowed in any output, on what `min_cosine` is measured on.
        max_drop: how much the metric on `eval` may fall. Floors alone find the smallest model that holds them;
            with a sparsity or a budget they are checks.
        eval: labelled data, .npz (`evaluation.load_evaluation`).
        metric: 'module:function' of outputs and labels, in place of top-1 accuracy.
        lossless: in place of a sparsity: remove only dead, constant and duplicate channels; the outputs may change by
            less than 1e-5 of their norm.
        allow_norm: let go of channels that a LayerNormalization (or RMS norm, or mean over channels) runs over: its
            statistics are then those of the channels that are left.
        prune_heads: take whole heads out of attention, instead of equally many channels in every head.
    """

    source_mass: str | None
    target_mass: str | None
    target: str | None
    cost_norm: int | None
    only: Sequence[str]
    gradients: Source | None
    scope: str | None
    target_macs: str | float | None
    target_params: str | float | None
    target_size: str | float | None
    ratio: Sequence[str]
    keep: Sequence[str]
    from_plan: PathLike | None
    latency: bool
    threads: int | None
    target_latency: str | float | None
    max_error: float | None
    max_drop: float | None
    eval: PathLike | None
    metric: str | None
    lossless: bool
    allow_norm: bool
    prune_heads: bool


def _path(given: PathLike | None) -> str | None:
    return None if given is None else os.fspath(given)


def _shapes(given: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, ...]] | None:
    return {name: tuple(map(plain, shape)) for name, shape in given.items()} if given else None


def plain(value: Any) -> Any:
    """A number or flag of NumPy or another package as Python's own, which the report writes: float32's 0.4 as 0.4."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(str(value) if isinstance(value, np.floating) else value)
    return value


def _ends(given: Mapping[str, Sequence[float]] | None) -> dict[str, tuple[float, ...]] | None:
    return {name: tuple(map(plain, ends)) for name, ends in given.items()} if given else None


PLAIN: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("exclude", "only", "ratio", "keep"), listed),
    **dict.fromkeys(("from_plan", "eval"), _path),
    "input_shapes": _shapes,
    "input_ranges": _ends,
}
"""Keywords that may be given in more forms than `Options` holds → the function to the form it holds."""


def options_of(function: Callable[..., Any], **given: Unpack[FuseKeywords]) -> Options:
    """The options that a call of a `documented` function asks for.

    Raises:
        TypeError: the function has no such keyword; the message names a near one.
    """
    known = inspect.signature(function).parameters
    for name in given:
        if name not in known:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{near(name, known)}")
    return Options(**{name: PLAIN.get(name, plain)(value) for name, value in given.items()})


def documented(*keywords: type) -> Callable[[F], F]:
    """Tell `help` what type checkers know of a function with `**options: Unpack[…]`.

    Its signature names every keyword of these classes, with type and default, and its docstring describes them.
    """
    hints = {name: hint for kind in keywords for name, hint in kind.__annotations__.items()}
    named = [_parameter(f, hints[f.name]) for f in fields(Options) if f.name in hints]

    def described(function: F) -> F:
        signature = inspect.signature(function)
        *own, rest = signature.parameters.values()
        at = sum(p.kind != inspect.Parameter.KEYWORD_ONLY for p in own)
        vars(function)["__signature__"] = signature.replace(parameters=[*own[:at], *named, *own[at:]])
        del function.__annotations__[rest.name]
        function.__annotations__ |= hints
        function.__doc__ = "\n\n".join(inspect.cleandoc(part.__doc__ or "") for part in (function, *keywords))
        return function

    return described


def _parameter(field: Field[Any], hint: ForwardRef) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, kind, default=field.default, annotation=hint.__forward_arg__)
