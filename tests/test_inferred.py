"""Normalizations that were folded before the file was written are known by the biases they left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest

from onnxfuse import fuse
from onnxfuse.calibdata import Batches
from onnxfuse.calibrate import Study, study
from onnxfuse.channels import Channels
from onnxfuse.drawing import marks_on
from onnxfuse.folding import Folded
from onnxfuse.graph import Graph
from onnxfuse.grouping import find_channels
from onnxfuse.inferred import PARTLY, Correction, infer, looked_at
from onnxfuse.measuring import survey
from onnxfuse.moments import statistics
from onnxfuse.options import Options
from onnxfuse.prepare import prepare
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.samples import synthetic
from onnxfuse.tensors import Array
from onnxfuse.trust import Source
from onnxfuse.walk import Walk

from .graphs import MODELS, from_text

ONE = """(float[N,2,4,4] x) => (float[N,3,4,4] y) <float[2,2,1,1] w1, float[2] b1, float[3,2,1,1] w2> {
    c = Conv(x, w1, b1)
    r = Relu(c)
    y = Conv(r, w2)
}"""
BLOCK = """e{i} = Conv({x}, we{i}, be{i})
    f{i} = Relu(e{i})
    d{i} = Conv<group=24, pads=[1,1,1,1]>(f{i}, wd{i}, bd{i})
    g{i} = Relu(d{i})
    p{i} = Conv(g{i}, wp{i}, bp{i})
    """
NUMBER = 4


def channels_of(model: onnx.ModelProto) -> Channels:
    return find_channels(Graph(model), probe(model, provider_list("cpu")))


def drawn(channels: Channels, count: int = 16, seed: int = 1) -> Batches:
    return synthetic(channels.tracker.graph.model, channels.tracker.probe, count, seed)


def trained(name: str) -> tuple[Channels, list[Folded]]:
    """One of the shipped models, its normalizations folded as an exporter folds them, and what these held."""
    model = onnx.load(MODELS / f"{name}.onnx")
    folded = prepare(model)
    return channels_of(model), folded


def kinds(found: Mapping[int, Correction], channels: Channels) -> set[tuple[bool, float, str]]:
    """What is done, and the first letter of what it is done to."""
    return {(how.means, how.alike, channels.tracker.graph.protos[i].output[0][0]) for i, how in found.items()}


def bottlenecks(beta: float, bottleneck_beta: float = 0.0) -> onnx.ModelProto:
    """Inverted residuals without shortcuts, with the biases that folded normalizations with such β leave."""
    weights = [
        f"float[24,{3 if not i else 8},1,1] we{i}, float[24] be{i}, float[24,1,3,3] wd{i}, float[24] bd{i}, "
        f"float[8,24,1,1] wp{i}, float[8] bp{i}" for i in range(NUMBER)
    ]  # fmt: skip
    nodes = "".join(BLOCK.format(i=i, x=f"p{i - 1}" if i else "x") for i in range(NUMBER))
    last = NUMBER - 1
    text = (
        f"(float[N,3,20,20] x) => (float[N,4,20,20] y) <{', '.join(weights)}, float[24,8,1,1] wl, float[4,24,1,1] wy>"
    )
    model = from_text(f"{text} {{ {nodes} l = Conv(p{last}, wl)\n m = Relu(l)\n y = Conv(m, wy) }}")
    rng, batches = np.random.default_rng(2), drawn(channels_of(model), seed=3)
    biases = [t for t in model.graph.initializer if t.name.startswith("b")]
    for tensor in biases:
        zero(tensor)
    for tensor in biases:
        mean, deviation = seen(model, tensor.name.replace("b", "", 1), batches)
        wide = bottleneck_beta if tensor.name.startswith("bp") else beta
        bias = -mean + wide * deviation * rng.standard_normal(len(mean))
        tensor.CopyFrom(onnx.numpy_helper.from_array(bias.astype(np.float32), tensor.name))
    return model


def zero(tensor: onnx.TensorProto) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))


def seen(model: onnx.ModelProto, value: str, batches: Batches) -> tuple[Array, Array]:
    return statistics(Walk(Graph(model), False, {}, batches).value(value))


def made(of: Study, value: str, channels: Channels) -> tuple[Array, Array]:
    """Mean and deviation of what the twin makes."""
    return statistics(Walk(channels.tracker.graph, False, of.twin, of.batches).value(value))


def test_a_trained_network_is_known_and_corrected_towards_what_it_was() -> None:
    """ResNet-20: nearer, in every measure, to the means and deviations that its own normalizations held."""
    channels, folded = trained("resnet20_fmnist")
    batches = drawn(channels, 64)
    found = infer(channels, batches, ()).layers
    assert {(how.means, how.alike) for how in found.values()} == {(True, 1.0)}
    assert len(found) == len(folded)

    def off(of: Study) -> tuple[float, float]:
        walk = Walk(channels.tracker.graph, False, of.twin, of.batches)
        apart = [(statistics(walk.value(f.output)), f) for f in folded]
        means = [np.mean(((mean - f.mean) / f.deviation) ** 2) for (mean, _), f in apart]
        wide = [np.mean(np.log(deviation / f.deviation) ** 2) for (_, deviation), f in apart]
        return float(np.mean(means)), float(np.mean(wide))

    before, after = off(study(channels, [], batches, None)), off(study(channels, [], batches, None, inferred=found))
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.5 * before[1]


@pytest.mark.parametrize("name", ["svhn", "lenet300_fmnist"])
def test_one_that_never_had_any_is_left_alone(name: str) -> None:
    channels, _ = trained(name)
    assert infer(channels, drawn(channels), ()).layers == {}


def test_fused_models_are_corrected_alike() -> None:
    """Where channels are matched on drawn samples, each by its own marks; not where it has its normalizations."""
    channels, folded = trained("resnet20_fmnist")
    batches = drawn(channels, 64)
    found = marks_on(channels, [], batches, 62_000_000)
    assert found.keys() == infer(channels, batches, ()).layers.keys() != set()
    assert marks_on(channels, folded, batches, 62_000_000) == {}


def test_nor_is_one_whose_biases_are_zero_or_random() -> None:
    model = bottlenecks(0.1)
    rng = np.random.default_rng(5)
    for wide in (0, 1):
        for tensor in (t for t in model.graph.initializer if t.name.startswith("b")):
            bias = wide * rng.standard_normal(tensor.dims[0])
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias.astype(np.float32), tensor.name))
        channels = channels_of(model)
        assert infer(channels, drawn(channels), ()).layers == {}


def test_after_long_training_only_bottlenecks_tell() -> None:
    """All layers do while β are small; then means of the bottlenecks, and a part of the others' deviations."""
    young, old, none = (channels_of(bottlenecks(*beta)) for beta in ((0.1,), (3.0,), (3.0, 3.0)))
    found = infer(young, drawn(young), ()).layers
    assert kinds(found, young) == {(True, 1, "e"), (True, 1, "d"), (True, 1, "p")}
    assert len({how.level for how in found.values()}) == 1
    assert kinds(infer(old, drawn(old), ()).layers, old) == {(False, PARTLY, "e"), (False, PARTLY, "d"), (True, 0, "p")}
    assert infer(none, drawn(none), ()).layers == {}


def halves(means: Sequence[float], deviations: Sequence[float]) -> Batches:
    """A batch whose channels have these means and deviations exactly."""
    signs = np.tile([-1.0, 1.0], 8 * 16).reshape(16, 1, 4, 4)
    x = np.array(means)[:, None, None] + np.array(deviations)[:, None, None] * signs
    return [{"x": x.astype(np.float32)}]


def corrected(bias: Sequence[float], how: Correction, batches: Batches) -> tuple[Study, tuple[Array, Array]]:
    """After a convolution that doubles the first of two channels and takes the second threefold."""
    weights = {"w1": np.diag([2.0, 3.0])[:, :, None, None].astype(np.float32), "b1": np.array(bias, np.float32)}
    channels = channels_of(from_text(ONE, weights))
    found = study(channels, [], batches, None, inferred={0: how})
    return found, made(found, "c", channels)


def test_means_are_multiplied_by_the_root_of_what_is_left_and_deviations_are_one() -> None:
    """By hand: means 2 and 3 become 0.5 and 0.5, so r = 0.5 / 13; deviations 2 and 3."""
    _, (mean, deviation) = corrected([-1.5, -2.5], Correction(True, 1, level=0.7), halves([1, 1], [1, 1]))
    np.testing.assert_allclose(mean, np.sqrt(0.5 / 13) * np.array([0.5, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(deviation, [0.7, 0.7], rtol=1e-5)
    found, (mean, deviation) = corrected([-1.5, -2.5], Correction(True, 0), halves([1, 1], [1, 1]))
    np.testing.assert_allclose(mean, np.sqrt(0.5 / 13) * np.array([0.5, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(deviation, [2, 3], rtol=1e-5)
    np.testing.assert_allclose(found.twin["w1"][:, :, 0, 0], np.diag([2, 3]), rtol=1e-5)


def test_without_means_deviations_go_a_part_of_the_way_to_their_mean() -> None:
    _, (mean, deviation) = corrected([0.5, 0.5], Correction(False, 0.5), halves([1, 1], [1, 1]))
    np.testing.assert_allclose(mean, [2.5, 3.5], rtol=1e-5)
    level = np.sqrt(6)
    np.testing.assert_allclose(deviation, [np.sqrt(2 * level), np.sqrt(3 * level)], rtol=1e-5)


@pytest.mark.parametrize(
    ("bias", "means"),
    [([2, -0.5], [1, 1]), ([0.01, -0.01], [1, 1]), ([1, -1], [0, 0])],
    ids=["not cancelled", "hardly any bias", "hardly any mean"],
)
def test_a_layer_whose_means_do_not_tell_keeps_every_bit(bias: Sequence[float], means: Sequence[float]) -> None:
    found, _ = corrected(bias, Correction(True, 1, level=0.7), halves(means, [1, 1]))
    assert not found.twin


def test_a_dead_channel_is_not_blown_up() -> None:
    _, (mean, deviation) = corrected([-1.5, -2.5], Correction(True, 1, level=0.7), halves([1, 1], [1, 1e-4]))
    np.testing.assert_allclose(deviation, [0.7, 3e-4], rtol=1e-3)
    np.testing.assert_allclose(mean, np.sqrt(0.5 / 13) * np.array([0.5, 0.5]), rtol=1e-4)


def folded_twice() -> onnx.ModelProto:
    """ResNet-20 as an exporter writes it: nothing tells of normalizations but biases."""
    model = onnx.load(MODELS / "resnet20_fmnist.onnx")
    prepare(model)
    return model


def test_what_is_measured_says_so() -> None:
    channels = channels_of(folded_twice())
    measured = survey(channels, [], Options(sparsity=0.5), None, (10**5, 10**7))
    assert measured is not None
    assert measured.source is Source.INFERRED
    assert measured.twin


def test_the_users_samples_are_never_corrected() -> None:
    channels = channels_of(folded_twice())
    measured = survey(channels, [], Options(sparsity=0.5), drawn(channels), (10**5, 10**7))
    assert measured is not None
    assert measured.source is Source.DATA
    assert not measured.twin


def test_separable_networks_are_trusted_as_if_they_had_theirs() -> None:
    channels = channels_of(bottlenecks(3.0))
    measured = survey(channels, [], Options(sparsity=0.5), None, (10**4, 10**6))
    assert measured is not None
    assert measured.source is Source.SEPARABLE


@pytest.mark.parametrize(
    "gemm",
    ["Gemm<alpha=0.5>(x, w1, v)", "Gemm<beta=2.0>(x, w1, v)", "Gemm(x, w1, rows)", "Gemm(x, w1, one)", "Gemm(x, w1)"],
)
def test_biases_that_are_not_one_number_for_each_channel_tell_nothing(gemm: str) -> None:
    text = """(float[4,6] x) => (float[4,3] y)
        <float[6,8] w1, float[8] v, float[4,8] rows, float[1] one, float[8,3] w2> {
        h = GEMM
        r = Relu(h)
        y = Gemm(r, w2)
    }""".replace("GEMM", gemm)
    channels = channels_of(from_text(text))
    assert infer(channels, drawn(channels), ()).layers == {}


def test_the_result_is_the_same_from_run_to_run() -> None:
    one, other = (fuse(folded_twice(), sparsity=0.3).model.SerializeToString() for _ in range(2))
    assert one == other


def test_large_models_are_looked_at_on_few_samples() -> None:
    assert [looked_at(macs) for macs in (0, 10**6, 10**9, 10**12)] == [64, 64, 8, 2]
