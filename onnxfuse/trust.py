"""What moments are measured on, and how far each of these can be trusted: one line in one table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Trust:
    """How far moments are trusted.

    Attributes:
        on: what they are measured on.
        ridge: the least λ of what is fitted to them: at 0.01 they correct nearly all of a merge, at 1 half of it, at 3
            a quarter.
        chooses: whether `auto` goes by them when it chooses channels.
        evenly: whether all outputs of a layer count alike in costs, instead of by how much they vary.
        doubt: the share of costs that goes by the weights alone.
        real: whether samples are like those that the network will see, so that all is done that gains on such, and not
            on others: depthwise kernels refitted, sums made up for, what an activation cuts off left out.
    """

    on: str
    ridge: float = 1e-2
    chooses: bool = True
    evenly: bool = False
    doubt: float = 0.0
    real: bool = False


class Source(Enum):
    """What moments were measured on.

    Other synthetic inputs drift from layer to layer, since no normalization corrects them on the way; weights do not.
    ResNet-20 folded, mean over 10 to 50% by global, keeps 78.9% without doubt, 82.2 at a quarter, 83.1 at one half and
    82.3 by weights alone; SVHN 88.7, 88.9, 88.2, 87.5. That was before its folded normalizations were inferred, from
    biases (`inferred.py`); samples are still not good enough to choose by then: VGG-11 folded keeps 81.7% over 20 to
    50%, by `surgeon` 80.4, a network with SiLU 87.5 and 78.5. Of what is fitted to synthetic files a thirteenth is
    enough, and costs go by weights alone there: magika's first version by global keeps the class of 63% of files
    without doubt, 68% at a quarter, 73% at a half, 78% so. Where depthwise kernels do much of the work, two thirds of a
    merge are corrected, though it is anchored: PP-OCR without 20% of its channels keeps 50.0% at a ridge of 0.01, 50.7
    at 0.1, 61.1 at 0.5, 62.5 at 1, 55.9 at 3; a MobileNetV2 on average over 20 to 50% 77.5, 78.3, 79.8, 78.3, 72.1.
    Lines of writing are like real ones: without 40% of their channels PP-OCR's fifth recognizer keeps 71, 60, 57 and
    40% of what it reads at ridges of 0.1, 0.3, 1 and 3, a sixth one 89, 91, 92 and 91. If it proves to read them, 92 as
    on the user's samples, and a text detector without 20% of its channels finds 93% of what it found, in place of
    nothing (`tools/results/README.md`).
    """

    DATA = Trust("the user's data", real=True)
    READ = Trust("synthetic writing, which the network reads or finds", doubt=0.25, real=True)
    ANCHORED = Trust("synthetic inputs, most layers anchored to what their BatchNormalization has seen", evenly=True)
    SEPARABLE = Trust("the same, or told by biases, where many kernels are depthwise", ridge=0.5, evenly=True)
    INFERRED = Trust("the same, anchored in part, as biases tell", ridge=0.3, chooses=False, evenly=True, doubt=0.5)
    WRITING = Trust("synthetic lines of writing", ridge=0.2, doubt=0.5)
    SOUND = Trust("synthetic sound at the level of recordings")
    TEXT = Trust("synthetic text, in short pieces", ridge=1.0)
    LETTERS = Trust("synthetic text, letter by letter", ridge=1.0, chooses=False, evenly=True, doubt=0.25)
    FILES = Trust("synthetic files, byte by byte", ridge=12.0, chooses=False, doubt=1.0)
    OTHER = Trust("other synthetic inputs", ridge=3.0, chooses=False, evenly=True, doubt=0.25)
