"""What a user may wish besides an amount: widths that kernels like, options files, earlier plans."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxfuse
from onnxfuse.rounding import convolution_blocks

from .graphs import build, from_text
from .test_cli import call

WIDE = """(float[N,3,8,8] x) => (float[N,4] y)
    <float[96,3,3,3] w1, float[64,96,1,1] w2, float[64,50] w3, float[50,4] w4> {
    c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
    r1 = Relu(c1)
    c2 = Conv(r1, w2)
    g = GlobalAveragePool(c2)
    f = Flatten(g)
    h = MatMul(f, w3)
    r3 = Relu(h)
    y = MatMul(r3, w4)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    onnx.save(build("residual"), path)
    return path


# --- rounding -------------------------------------------------------------------------------------------------------
def widths(**options: Any) -> dict[str, int]:
    return {g.name: g.after for g in onnxfuse.fuse(from_text(WIDE), **options).report.groups}


def test_exact_widths() -> None:
    assert widths(sparsity=0.3, round_to=1) == {"c1": 67, "c2": 44, "h": 35}


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("sparsity", [0.2, 0.45, 0.7])
def test_rounded_widths(sparsity: float, scope: str) -> None:
    """Multiples of 16, at most as many multiply-accumulates as exact widths have."""
    options: dict[str, Any] = {"sparsity": sparsity, "scope": scope, "method": "fold"}
    exact = onnxfuse.fuse(from_text(WIDE), round_to=1, **options).report
    rounded = onnxfuse.fuse(from_text(WIDE), round_to=16, **options).report
    assert all(g.after % 16 == 0 or g.after == g.before for g in rounded.groups)
    assert rounded.after.macs <= exact.after.macs
    if scope == "local":
        near = zip(exact.groups, rounded.groups, strict=True)
        assert all(abs(a.after - b.after) < 16 for a, b in near)
    assert "multiples of 16" in " ".join(rounded.notes)


@pytest.mark.parametrize(("round_to", "small"), [(64, "2 groups have"), (512, "3 groups have"), (1, ""), (32, "")])
def test_groups_too_small_to_be_rounded_are_told(round_to: int, small: str) -> None:
    notes = onnxfuse.fuse(from_text(WIDE), sparsity=0.4, round_to=round_to, method="drop").report.notes
    told = [f"{small} at most {round_to} channels: no multiple of that is less, so widths are exact"] * bool(small)
    assert [n for n in notes if "exact" in n] == told


@pytest.mark.parametrize("share", [0.9, 0.6, 0.45])
def test_rounding_does_not_miss_a_budget(share: float) -> None:
    """Whole blocks are coarse here: groups may end within a block, so that the budget is used."""
    block = convolution_blocks()
    report = onnxfuse.fuse(from_text(WIDE), target_macs=share, method="drop").report
    assert 0.97 * share <= report.after.macs / report.before.macs <= share
    kept = [g.after for g in report.groups if g.name != "h"]
    assert all(k % block.padded == 0 for k in kept)


@pytest.mark.parametrize(
    ("between", "whole"), [("GlobalAveragePool", True), ("MaxPool<kernel_shape = [2, 2]>", True), ("Relu", False)]
)
def test_what_a_pool_reads_ends_with_a_block(between: str, whole: bool) -> None:
    """7.5 of 8 blocks would use up the budget, but onnxruntime pools whole ones only: the model would be slower."""
    block = convolution_blocks()
    n = 8 * block.whole
    text = f"""(float[N,3,8,8] x) => (float[N,6,a,b] y) <float[{n},3,3,3] w1, float[6,{n},1,1] w2> {{
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
        r1 = Relu(c1)
        p = {between}(r1)
        y = Conv(p, w2)
    }}"""
    report = onnxfuse.fuse(from_text(text), target_macs=0.95, method="drop").report
    part = block.whole // 2 if block.padded < block.whole and not whole else 0
    assert [g.after for g in report.groups] == [n - block.whole + part]


def test_what_was_asked_for_is_not_overruled() -> None:
    """Blocks of 32 leave some of a budget unused, and one that they cannot reach is out of reach."""
    report = onnxfuse.fuse(from_text(WIDE), target_macs=0.6, round_to=32, method="drop").report
    assert all(g.after % 32 == 0 or g.after == g.before for g in report.groups)
    assert report.after.macs / report.before.macs <= 0.6
    with pytest.raises(onnxfuse.UsageError, match=r"out of reach: .* 0\.\d+ of the original's, with --round-to 32"):
        onnxfuse.fuse(from_text(WIDE), target_macs=0.1, round_to=32, method="drop")


@pytest.mark.parametrize("name", ["macs", "params", "size"])
def test_the_smallest_share_that_is_named_is_within_reach(name: str) -> None:
    least: dict[str, Any] = {f"target_{name}": 1e-6}
    with pytest.raises(onnxfuse.UsageError) as caught:
        onnxfuse.fuse(from_text(WIDE), **least, round_to=1, method="drop")
    named = re.search(r"(\S+) of the original's", str(caught.value))
    assert named is not None
    least[f"target_{name}"] = float(named[1])
    onnxfuse.fuse(from_text(WIDE), **least, round_to=1, method="drop")


def test_a_budget_takes_whole_blocks_first() -> None:
    """Parts of blocks in the narrow layers of ResNet-20 would keep the budget, too, and save no time."""
    block = convolution_blocks().whole
    model = Path(__file__).parents[1] / "models" / "resnet20_fmnist.onnx"
    groups = onnxfuse.fuse(model, target_macs=0.9, scope="local", method="drop").report.groups
    assert any(g.before - g.after >= block for g in groups)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_model_without_groups(scope: str) -> None:
    """There is nothing to merge for a sparsity; a budget that holds as it is asks for nothing."""
    model = from_text("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    with pytest.raises(onnxfuse.OnnxFuseError, match="nothing to merge"):
        onnxfuse.fuse(model, sparsity=0.3, scope=scope)
    for budget in ({"target_macs": 0.5}, {"target_params": 0.5}, {"target_size": "1MB"}):
        assert onnxfuse.fuse(model, scope=scope, **budget).report.groups == ()


def test_rounding_gives_way_to_a_budget() -> None:
    """With whole blocks nothing below 0.05 could be had."""
    report = onnxfuse.fuse(from_text(WIDE), target_macs=0.02, method="drop").report
    assert 0.018 <= report.after.macs / report.before.macs <= 0.02


def test_auto_rounds_what_convolutions_make() -> None:
    """The hidden layer of a matrix product is no block of onnxruntime's; groups within a block stay exact."""
    block, found = convolution_blocks(), widths(sparsity=0.3)
    assert block.whole in (1, 4, 8, 16)
    assert block.whole % block.padded == 0
    assert found["c1"] % block.whole == found["c2"] % block.whole == 0
    assert found["h"] == 35
    small = onnxfuse.fuse(from_text(WIDE.replace("96", "8").replace("64", "7")), sparsity=0.3, method="fold").report
    assert [g.after for g in small.groups] == [5, 4, 35]
    assert small.notes == ()


def test_channels_count_where_the_convolution_has_them() -> None:
    """Behind the Reshape four places of the convolution's input belong to one channel: any number of these fits."""
    model = from_text("""(float[N,8,5] x) => (float[N,6,2,1] y) <float[5,40] w1, float[6,160,1,1] w2,
        int64[4] shape = {0, 2, 160, 1}, int64[4] last = {0, 160, 2, 1}> {
        h = MatMul(x, w1)
        s = Reshape(h, shape)
        t = Transpose<perm = [0, 2, 1, 3]>(s)
        y = Conv(t, w2)
    }""")
    report = onnxfuse.fuse(model, target_params=0.93, method="drop").report
    padded = convolution_blocks().padded
    assert [g.after for g in report.groups] == [37 if padded <= 4 else 36]


@pytest.mark.parametrize(("sparsity", "kept"), [(0.1, {4, 8}), (0.5, {4})])
def test_groups_of_a_convolution_are_not_padded(sparsity: float, kept: set[int]) -> None:
    """With 7 channels in each group of a convolution it takes longer than with 8; of 6 there is no block to lose."""
    n, model = convolution_blocks().whole, "(float[N,3,8,8] x) => (float[N,6,8,8] y)"
    for size, widths in ((n, {k * n // 8 for k in kept}), (6, {5 if sparsity == 0.1 else 3})):
        d = 4 * size
        text = f"""{model} <float[{d},3,1,1] w1, float[{d},{size},3,3] w2, float[6,{d},1,1] w3> {{
            a = Conv(x, w1)
            b = Conv<group = 4, pads = [1, 1, 1, 1]>(a, w2)
            y = Conv(b, w3)
        }}"""
        groups = onnxfuse.fuse(from_text(text), sparsity=sparsity, method="drop").report.groups
        assert {g.after for g in groups} <= widths


def test_small_groups_end_where_onnxruntime_pads() -> None:
    """With 14 channels of 16 a convolution is left to a kernel that takes longer than the whole one."""
    block = convolution_blocks()
    model = from_text(WIDE.replace("96", str(3 * block.whole)).replace("64", str(2 * block.whole)))
    report = onnxfuse.fuse(model, sparsity=0.1, method="drop").report
    assert all(g.after % block.padded == 0 for g in report.groups if g.name != "h")


# --- plans ----------------------------------------------------------------------------------------------------------
def test_plan_of_one_run_is_input_of_the_next(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan, first, second = (model.with_name(n) for n in ("plan.json", "one.onnx", "two.onnx"))
    assert call(capfd, model, first, "--target-macs", 0.6, "--plan", plan)[0] == 0
    assert call(capfd, model, second, "--from-plan", plan)[0] == 0
    assert first.read_bytes() == second.read_bytes()


def test_plan_edited_by_hand(model: Path) -> None:
    plan = model.with_name("plan.json")
    groups = [{"name": "c4", "kept": [0, 3, 5]}, {"name": "c2", "kept": 5, "channels": 6}]
    plan.write_text(json.dumps({"groups": groups}))
    report = onnxfuse.fuse(model, from_plan=plan).report
    assert [(g.name, g.after) for g in report.groups] == [("c1", 8), ("c2", 5), ("c4", 3)]


PLANS: list[tuple[str, str]] = [
    ("{", "is not a plan that --plan wrote"),
    ("[]", "is not a plan that --plan wrote"),
    ('{"groups": [{"name": "c4"}]}', "entry 0 of its groups has no text 'name' and a 'kept'"),
    ('{"groups": [{"name": "c44", "kept": 3}]}', "group 'c44' is not in this model; near: c4"),
    ('{"groups": [{"name": "c4", "kept": 13}]}', "cannot keep 13 channels; give 1 to 12"),
    ('{"groups": [{"name": "c4", "kept": "all"}]}', "cannot keep 'all' channels"),
    ('{"groups": [{"name": "c4", "kept": true}]}', "cannot keep True channels; give 1 to 12, or a list"),
    ('{"groups": [{"name": "c4", "kept": [1, 1, 12]}]}', "cannot keep [1, 1, 12] channels"),
    ('{"groups": [{"name": "c4", "kept": [[1]]}]}', "cannot keep [[1]] channels"),
    ('{"groups": [{"name": "c4", "kept": 3}, {"name": "c4", "kept": 4}]}', "more often than in this model"),
    ('{"groups": [{"name": ["c4"], "kept": 3}]}', "entry 0 of its groups has no text 'name'"),
    ('{"groups": "c4"}', "it has no list 'groups'"),
    ('{"groups": []}', "nothing to merge: what is asked for takes no channel"),
    ("[" * 100_000, "is not a plan that --plan wrote (maximum recursion depth"),
    ('{"groups": [{"name": "c4", "kept": 3, "channels": 8}]}', "has 8 channels in the plan, 12 in this model"),
]


@pytest.mark.parametrize(("text", "message"), PLANS, ids=[m for _, m in PLANS])
def test_bad_plans(text: str, message: str, model: Path) -> None:
    plan = model.with_name("plan.json")
    plan.write_text(text)
    with pytest.raises(onnxfuse.OnnxFuseError) as caught:
        onnxfuse.fuse(model, from_plan=plan)
    assert message in str(caught.value)


def test_a_plan_must_agree_with_itself(tmp_path: Path) -> None:
    """Blocks of a grouped convolution shrink together."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"groups": [{"name": "c1", "kept": kept} for kept in (2, 3)]}))
    with pytest.raises(onnxfuse.UsageError, match=r"'c1' and 'c1' shrink together: with 3 .* give 3 of the second"):
        onnxfuse.fuse(build("grouped"), from_plan=plan)


def test_no_plan(model: Path) -> None:
    with pytest.raises(onnxfuse.UsageError, match="cannot be read: No such file"):
        onnxfuse.fuse(model, from_plan=model.with_name("none.json"))


# --- together -------------------------------------------------------------------------------------------------------
def test_wishes_hold_at_sparsity_0(model: Path) -> None:
    """It is said of all layers that nothing is said of."""
    plan, out = model.with_name("plan.json"), model.with_name("out.onnx")
    plan.write_text(json.dumps({"groups": [{"name": "c4", "kept": 5}]}))
    report = onnxfuse.fuse(model, sparsity=0, ratio="^c2$=0.5", from_plan=plan, method="drop").report
    assert [(g.name, g.after) for g in report.groups] == [("c1", 8), ("c2", 3), ("c4", 5)]
    with pytest.raises(onnxfuse.UsageError, match="matches no layer"):
        onnxfuse.fuse(model, sparsity=0, keep="nothing")
    onnxfuse.fuse(model, out, sparsity=0, keep="c2")
    assert out.read_bytes() == model.read_bytes()


def test_only_is_over_ratios_and_plans(model: Path) -> None:
    plan = model.with_name("plan.json")
    plan.write_text(json.dumps({"groups": [{"name": "c4", "kept": 5}, {"name": "c1", "kept": 5}]}))
    report = onnxfuse.fuse(model, only="c[24]", ratio="c[12]=0.5", from_plan=plan, method="drop").report
    assert [(g.name, g.after) for g in report.groups] == [("c1", 8), ("c2", 3), ("c4", 5)]
    with pytest.raises(onnxfuse.UsageError, match=r"--ratio 'c1' matches no layer .* with this --only; near: c"):
        onnxfuse.fuse(model, only="c2", ratio="c1=0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_macs": 0.5, "keep": ".*"}, "the smallest possible here is .*, 1 of the original's, with --keep"),
        ({"target_size": 0.5, "ratio": ".*=0.1", "exclude": "c4"}, "of the original's, with --ratio, --exclude"),
        ({"min_cosine": 0.5, "keep": ".*"}, "nothing to merge: what is asked for takes no channel from any group"),
        ({"max_error": 9.0, "exclude": ".*"}, r"nothing to merge: .*excluded \(c1\)"),
    ],
)
def test_wishes_that_leave_too_little(options: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(onnxfuse.OnnxFuseError, match=message):
        onnxfuse.fuse(model, method="drop", **options)


# --- options files --------------------------------------------------------------------------------------------------
CONFIG = """
method = "drop"
sparsity = 0.25
exclude = ["^c9$|^y$"]
ratio = {"^c2$" = 0.5}
input-shape = {x = [2, 3, 8, 8]}
dry_run = true
quiet = false
json = "-"
"""


def test_options_file(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every kind of value; what the command line says comes after."""
    config = model.with_name("onnxfuse.toml")
    config.write_text(CONFIG)
    code, out, err = call(capfd, model, "--config", config, "--sparsity", 0.5)
    assert (code, err) == (0, "")
    options = json.loads(out)["options"]
    assert (options["method"], options["sparsity"], options["ratio"]) == ("drop", 0.5, ["^c2$=0.5"])
    assert options["input_shapes"] == {"x": [2, 3, 8, 8]}
    assert [g["after"] for g in json.loads(out)["groups"]] == [4, 3]


CONFIGS: list[tuple[str, str]] = [
    ("sparsity = ", "is not TOML"),
    ("sparsty = 0.3", "'sparsty' is no option; near: sparsity"),
    ('sparsity = "half"', "invalid float value: 'half'"),
    ('config = "other.toml"', "'config' is no option"),
    ("json = true", "json is true; give a text or a number, only one"),
    ("plan = true", "plan is true"),
    ("sparsity = true", "sparsity is true; give a number, only one"),
    ("sparsity = false", "sparsity is false"),
    ("sparsity = [0.3, 0.5]", "sparsity is a list; give a number, only one"),
    ("seed = {x = 1}", "seed is a table; give a whole number, only one"),
    ("exclude = [true]", "exclude is a list; give a text or a number, or a list of them"),
    ("exclude = [false]", "exclude is a list"),
    ("exclude = {x = 1}", "exclude is a table"),
    ("ratio = {x = true}", "ratio is a table; give a text or a number, or a list of them, or a table of them by name"),
    ('dry-run = "yes"', "dry-run is 'yes'; give true or false"),
    ("repair = 1", "repair is 1; give true or false"),
]


@pytest.mark.parametrize(("text", "message"), CONFIGS)
def test_bad_options_files(text: str, message: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = model.with_name("onnxfuse.toml")
    config.write_text(text)
    before = model.read_bytes()
    code, _, err = call(capfd, "--config", config, model, "--sparsity", 0.5, "--dry-run")
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err
    assert model.read_bytes() == before


@pytest.mark.parametrize(("text", "repair"), [("repair = false", False), ("repair = true", True), ("", None)])
def test_an_option_that_can_be_on_and_off_in_a_file(
    text: str, repair: bool | None, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = model.with_name("onnxfuse.toml")
    config.write_text(text)
    _, out, _ = call(capfd, model, "--dry-run", "--config", config, "--sparsity", 0.5, "--json", "-")
    assert json.loads(out)["options"]["repair"] is repair


def test_later_files_come_after_earlier_ones(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first was not looked at."""
    files = [model.with_name(name) for name in ("a.toml", "b.toml")]
    files[0].write_text('seed = 1\nexclude = ["c2"]\n')
    files[1].write_text("seed = 2\n")
    arguments = ["--config", files[0], "--config", files[1], "--sparsity", 0.5, "--dry-run", "--json", "-"]
    options = json.loads(call(capfd, model, *arguments)[1])["options"]
    assert (options["seed"], options["exclude"]) == (2, ["c2"])
    files[1].write_text('json = "-"')
    code, out, err = call(capfd, model, "--config", files[1], "--sparsity", "half")
    assert (code, json.loads(out)["error"]) == (2, err.removeprefix("onnxfuse: ").rstrip())


def test_a_file_is_named_with_config(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, "in.onnx", "--config")
    assert (code, out, err) == (2, "", "onnxfuse: argument --config: expected one argument; see onnxfuse --help\n")


def test_no_options_file(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capfd, model, "--dry-run", "--config", model.with_name("none.toml"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "cannot be read" in err
