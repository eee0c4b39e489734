"""equalize without data: channels become alike, the function stays, and what cannot be scaled is refused
with its reason.
"""

import numpy as np
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.equalize.equalize import Equalize
from tests.support.builders import build, random
from tests.support.equalizing import Observed, constants, difference, equalize, spread, uneven

IMAGE = "(float[N, 3, 8, 8] x) => (float[N, 5, H, W] y)"
CHAIN = f"{IMAGE} {{{{ a = Conv (x, u, c) {{between}} y = Conv (b, v) }}}}"
PADDED = "Conv <pads = [1, 1, 1, 1]>"


def layers(channels: int = 10) -> dict[str, np.ndarray]:
    return {"u": uneven(random(channels, 3, 3, 3)), "c": random(channels), "v": random(5, channels, 1, 1)}


def ranges(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(weight).max(axis=tuple(index for index in range(weight.ndim) if index != axis))


def test_both_sides_of_each_channel_get_the_same_range() -> None:
    model = build(CHAIN.format(between="b = Relu (a)"), **layers())
    result, report = equalize(model)
    before, after = constants(model), constants(result)
    written, read = ranges(after["u"], 0), ranges(after["v"], 1)
    assert spread(written / read) < 1.001, "one factor for all channels"
    assert spread(ranges(before["u"], 0)) > 4 * spread(written)
    scale = ranges(before["u"], 0) / written
    np.testing.assert_allclose(after["c"], before["c"] / scale, rtol=1e-5)
    assert difference(model, result) < 1e-5
    assert [edit.node for edit in report.edits] == ["Conv_0"]
    assert "10 channels divided by" in report.edits[0].what
    assert report.metrics["channels"] == 10
    assert np.exp(np.log(scale).mean()) == pytest.approx(1, rel=1e-3), "the tensor as a whole keeps its size"


@pytest.mark.parametrize(
    "between, extra",
    [
        ("b = LeakyRelu <alpha = 0.2> (a)", {}),
        ("b = PRelu (a, p)", {"p": random(10, 1, 1)}),
        ("b = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (a)", {}),
        ("b = AveragePool <kernel_shape = [2, 2], pads = [0, 0, 1, 1], count_include_pad = 1> (a)", {}),
        ("d = Relu (a) b = Pad (d, p)", {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
        ('b = Pad <mode = "reflect"> (a, p)', {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
        ("b = Clip (a, p)", {"p": np.array(0, np.float32)}),
        ("b = Add (a, p)", {"p": random(10, 1, 1)}),
        ("b = Mul (a, p)", {"p": random(1, 10, 1, 1)}),
        ("z = Sigmoid (p) b = Mul (a, z)", {"p": random(1, 10, 1, 1)}),
        ("b = Max (a, p)", {"p": np.zeros((), np.float32)}),
        ("b = Resize (a, , p)", {"p": np.array([1, 1, 2, 2], np.float32)}),
        (f"d = {PADDED} (a, w, h) b = Relu (d)", {"w": random(10, 10, 3, 3), "h": random(10)}),
        ("d = Conv <group = 2> (a, w) b = Relu (d)", {"w": uneven(random(10, 5, 1, 1))}),
        ("d = ConvTranspose (a, w, h) b = Relu (d)", {"w": random(10, 10, 2, 2), "h": random(10)}),
        ("d = ConvTranspose <group = 2> (a, w, h) b = Relu (d)", {"w": random(10, 5, 2, 2), "h": random(10)}),
        (
            "d = ConvTranspose <group = 10> (a, w, h) b = Relu (d)",
            {"w": uneven(random(10, 1, 2, 2)), "h": random(10)},
        ),
        ("d = Conv (x, w) e = Add (a, d) b = Relu (e)", {"w": uneven(random(10, 3, 3, 3))}),
        (f"d = {PADDED} (a, w) r = Relu (d) e = {PADDED} (r, w) b = Add (e, a)", {"w": random(10, 10, 3, 3)}),
        ("d, e = Split <axis = 1> (a, p) f = Relu (e) b = Concat <axis = 1> (f, d)", {"p": np.array([4, 6])}),
        (
            "d = Reshape (a, p) e = Transpose <perm = [0, 2, 1, 3, 4]> (d) b = Reshape (e, q)",
            {"p": np.array([-1, 2, 5, 6, 6]), "q": np.array([-1, 10, 6, 6])},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scales_run_through(between: str, extra: dict[str, np.ndarray]) -> None:
    model = build(CHAIN.format(between=between), **layers(), **extra)
    result, report = equalize(model)
    assert "Conv_0" in {edit.node for edit in report.edits}
    assert spread(ranges(constants(result)["u"], 0)) < spread(ranges(constants(model)["u"], 0)) / 2
    assert difference(model, result) < 1e-5


@pytest.mark.parametrize("head", ["Flatten (b)", "Reshape (b, s)"])
@pytest.mark.parametrize(
    "gemm, shape",
    [
        ("Gemm (f, v, k)", (360, 5)),
        ("Gemm <transB = 1, alpha = 0.5> (f, v, k)", (5, 360)),
        ("MatMul (f, v)", (360, 5)),
    ],
)
def test_flattened_channels_scale_blocks_of_inputs(head: str, gemm: str, shape: tuple[int, int]) -> None:
    text = f"(float[2, 3, 8, 8] x) => (float[2, 5] y) {{ a = Conv (x, u, c) b = Relu (a) f = {head} y = {gemm} }}"
    model = build(text, **layers() | {"v": random(*shape), "k": random(5), "s": np.array([2, 360])})
    result, report = equalize(model)
    changed = constants(result)["v"] / constants(model)["v"]
    blocks = (changed if shape[0] == 5 else changed.T)[0].reshape(10, 36)
    assert spread(blocks[0]) < 1.0001
    assert spread(blocks[:, 0]) > 4
    assert len(report.edits) == 1
    assert difference(model, result) < 1e-5


def test_a_depthwise_convolution_takes_one_scale_and_writes_another() -> None:
    text = f"{IMAGE} {{ a = Conv (x, u, c) b = Clip (a, z) d = Conv <group = 10> (b, w, h) e = Relu (d) y = Conv (e, v) }}"
    model = build(
        text,
        **layers() | {"v": random(5, 20, 1, 1)},
        w=uneven(random(20, 1, 3, 3)),
        h=random(20),
        z=np.zeros((), np.float32),
    )
    result, report = equalize(model)
    assert [edit.node for edit in report.edits] == ["Conv_0", "Conv_2"]
    after = constants(result)
    first, middle, last = ranges(after["u"], 0), ranges(after["w"], 0), ranges(after["v"], 1)
    assert spread(first / middle.reshape(10, 2).max(axis=1)) < 1.05
    assert spread(middle / last) < 1.05
    assert difference(model, result) < 1e-5


@pytest.mark.parametrize(
    "between, reason",
    [
        ("b = Sigmoid (a)", "Sigmoid_1 (Sigmoid) does not commute with scaling"),
        ("b = Relu (a) z = Tanh (b)", "Tanh_2 (Tanh) does not commute with scaling"),
        ("b = Clip (a, lo, hi)", "Clip_1 clips all channels at 0 and 6; give clip=channels or clip=drop"),
        ("b = Add (a, hi)", "Add_1 joins it with hi, which all channels share"),
        (
            "m = ReduceMean <axes = [1], keepdims = 1> (x) p = MaxPool <kernel_shape = [3, 3]> (m) b = Add (a, p)",
            "Add_3 joins it with p, which all channels share",
        ),
        ("b = Pad (a, pads, hi)", "Pad_1 pads it with another value than zero"),
        ("d = Relu (a) b = Mul (d, a)", "Mul_2 computes a product with it"),
        ("d = InstanceNormalization (a, g, g) b = Sigmoid (d)", "InstanceNormalization_1 normalizes it"),
    ],
    ids=lambda value: value,
)
def test_refusals(between: str, reason: str) -> None:
    extra = {
        "lo": np.float32(0),
        "hi": np.float32(6),
        "g": random(10),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    output = (
        "(float[N, 3, 8, 8] x) => (float[N, 5, H, W] y, float[N, 10, H, W] z)" if "z =" in between else IMAGE
    )
    model = build(CHAIN.format(between=between).replace(IMAGE, output), **layers(), **extra)
    result, report = equalize(model)
    assert not report.edits
    assert {skip.node: skip.reason for skip in report.skips}[
        "Conv_0"
    ] == f"its channels keep their scale: {reason}"
    np.testing.assert_array_equal(constants(result)["u"], constants(model)["u"])


def test_the_output_keeps_its_scale_and_so_does_what_a_body_reads() -> None:
    text = """(float[N, 3, 8, 8] x, bool q) => (float[N, 5, H, W] y, float[N, 10, H, W] z) {
        a = Conv (x, u, c) b = Relu (a) y = Conv (b, v)
        z = If (q) <then_branch = g1 () => (float[N, 10, H, W] t) { t = Identity (b) },
                     else_branch = g2 () => (float[N, 10, H, W] e) { e = Abs (b) }> }"""
    _, report = equalize(build(text, **layers()))
    assert not report.edits
    assert {skip.node: skip.reason for skip in report.skips} == {
        "Conv_0": "its channels keep their scale: a body of If, Loop or Scan reads b",
        "Conv_2": "its channels keep their scale: it writes the model's output 'y'",
    }


def test_a_shared_weight_is_scaled_for_both_layers_or_not_at_all() -> None:
    text = f"{IMAGE} {{ a = Conv (x, u, c) b = Relu (a) d = Conv (x, u, c) e = Relu (d) f = Conv (b, v) g = Conv (e, v) y = Add (f, g) }}"
    model = build(text, **layers())
    result, report = equalize(model)
    assert [edit.node for edit in report.edits] == ["Conv_0", "Conv_2"]
    assert difference(model, result) < 1e-5
    other = "(float[N, 3, 8, 8] x) => (float[N, 5, H, W] y) { a = Conv (x, u) b = Relu (a) f = Conv (b, v) g = Conv (x, v) y = Add (f, g) }"
    model = build(other, u=uneven(random(3, 3, 1, 1)), v=random(5, 3, 1, 1))
    result, report = equalize(model)
    assert not report.edits, "x cannot be scaled, and the weight that reads it reads b, too"
    assert "Conv_0" in {skip.node for skip in report.skips}


def test_stored_weights_are_left_alone_with_the_reason() -> None:
    text = f"{IMAGE} {{ a = Conv (x, u, c) b = Relu (a) i = Cast <to = 6> (codes) v = Gather (book, i) y = Conv (b, v) }}"
    values = {"codes": np.zeros((5, 10, 1, 1), np.uint8), "book": np.array([0.5, 1], np.float32)}
    _, report = equalize(
        build(text, **{name: value for name, value in layers().items() if name != "v"}, **values)
    )
    assert not report.edits
    reasons = {skip.node: skip.reason for skip in report.skips}
    assert reasons["Conv_4"] == "its weight is stored as a codebook; equalize before codebook"
    assert "Conv_4 reads it, and its weight is stored as a codebook" in reasons["Conv_0"]


def test_zeros_stay_zeros() -> None:
    values = layers()
    for name in ("u", "v"):
        values[name] = values[name] * (random(*values[name].shape) > 0)
    model = build(CHAIN.format(between="b = Relu (a)"), **values)
    model.metadata_props.add(key=metadata.SPARSE, value='{"u": "unstructured"}')
    result, report = equalize(model)
    assert report.edits
    for name in ("u", "v"):
        np.testing.assert_array_equal(constants(result)[name] == 0, values[name] == 0)


def test_dead_channels_and_locked_ones_keep_their_scale() -> None:
    values = layers()
    values["u"][3] = 0
    values["v"][:, 5] = 0
    model = build(CHAIN.format(between="b = Relu (a)"), **values)
    result, _ = equalize(model)
    changed = constants(result)["c"] / values["c"]
    assert changed[[3, 5]].tolist() == [1, 1]
    body = "b = Conv (x, w) t = Sigmoid (b) e = Add (b, t) d = Concat <axis = 1> (a, b) r = Relu (d) y = Conv (r, v)"
    text = f"{IMAGE} {{ a = Conv (x, u, c) {body} }}"
    model = build(
        text, u=100 * random(10, 3, 3, 3), c=random(10), w=random(4, 3, 3, 3), v=random(5, 14, 1, 1)
    )
    result, report = equalize(model)
    assert [edit.node for edit in report.edits] == ["Conv_0"]
    ratio = ranges(constants(result)["u"], 0) / ranges(constants(result)["v"], 1)[:10]
    locked = ranges(constants(model)["w"], 0) / ranges(constants(model)["v"], 1)[10:]
    assert np.exp(np.log(ratio).mean()) == pytest.approx(np.exp(np.log(locked).mean()), rel=0.01), (
        "made like those that stay"
    )


@pytest.mark.parametrize("side", ["u", "v"])
def test_channels_that_hardly_count_do_not_decide_about_the_others(side: str) -> None:
    """Seven channels of ten are all but zero: were all to be centred around their mean, the three others
    would meet max_scale together.
    """
    values = layers()
    nearly = np.ones(10, np.float32)
    nearly[3:] = 1e-18
    values[side] = values[side] * nearly.reshape((-1, 1, 1, 1) if side == "u" else (1, -1, 1, 1))
    model = build(CHAIN.format(between="b = Relu (a)"), **values)
    result, report = equalize(model)
    after = constants(result)
    assert spread((ranges(after["u"], 0) / ranges(after["v"], 1))[:3]) < 1.001
    assert difference(model, result) < 1e-5
    values = layers() | {"u": random(10, 3, 3, 3)}
    values[side] = values[side] * nearly.reshape((-1, 1, 1, 1) if side == "u" else (1, -1, 1, 1))
    _, report = equalize(build(CHAIN.format(between="b = Relu (a)"), **values), min_scale=4.0)
    assert not report.edits, "those that count are alike"


def test_channels_that_are_alike_stay_and_scales_are_bounded() -> None:
    values = layers() | {"u": random(10, 3, 3, 3)}
    model = build(CHAIN.format(between="b = Relu (a)"), **values)
    _, report = equalize(model, min_scale=4.0)
    assert not report.edits
    assert report.metrics["channels"] == 0
    assert [skip.reason for skip in report.skips if skip.node == "Conv_0"] == [
        "its channels are alike: none would change by more than min_scale=4"
    ]
    _, report = equalize(build(CHAIN.format(between="b = Relu (a)"), **layers()), max_scale=2.0)
    assert report.metrics["largest_scale"] == pytest.approx(2)


@pytest.mark.parametrize("opset", [11, 13, 24])
def test_opsets(opset: int) -> None:
    model = build(CHAIN.format(between="b = Relu (a)"), opset=opset, **layers())
    model.ir_version = 8 if opset < 20 else 10
    result, report = equalize(model)
    assert report.edits
    assert difference(model, result) < 1e-5
    assert {entry.domain: entry.version for entry in result.opset_import} == {"": opset}


def test_layer_normalization_gives_its_scale_to_the_layers_behind_it() -> None:
    text = """(float[N, 7, 10] x) => (float[N, 7, 5] y, float[N, 7, 6] z) {
        a = LayerNormalization <axis = -1> (x, g, s) y = MatMul (a, v) z = MatMul (a, w) }"""
    model = build(text, g=uneven(random(10)), s=random(10), v=random(10, 5), w=random(10, 6))
    calibrator = Observed(random(4, 7, 10))
    result, report = equalize(model, calibrator, activations=True)
    assert [edit.node for edit in report.edits] == ["LayerNormalization_0"]
    size = np.abs(next(calibrator.observe(result, ["a"]))["a"]).max(axis=(0, 1))
    after = constants(result)
    read = np.maximum(ranges(after["v"], 0), ranges(after["w"], 0))
    assert spread(size / read) < 1.001, (
        "with alpha = 0.5 the channels and the weights that read them share their inequality"
    )
    assert difference(model, result) < 1e-5


def test_batch_normalization_writes_a_scale_of_its_own_and_takes_one() -> None:
    body = (
        "d = BatchNormalization (a, g, s, m, n) b = Relu (d) e = Conv (a, v) f = Conv (b, q) y = Add (e, f)"
    )
    text = f"{IMAGE} {{ a = Conv (x, u, c) {body} }}"
    parameters = {
        "g": uneven(random(10)),
        "s": random(10),
        "m": random(10),
        "n": np.abs(random(10)) + np.float32(0.5),
    }
    model = build(text, **layers(), **parameters, q=random(5, 10, 1, 1))
    result, report = equalize(model)
    assert {edit.node for edit in report.edits} == {"Conv_0", "BatchNormalization_1"}
    after = constants(result)
    np.testing.assert_array_equal(after["n"], parameters["n"])
    np.testing.assert_allclose(after["m"] / parameters["m"], after["c"] / constants(model)["c"], rtol=1e-5)
    assert difference(model, result) < 1e-5


def test_what_is_lossless_and_what_needs_data() -> None:
    assert Equalize().lossless
    assert Equalize().needs == ()
    assert configure(Equalize, {"clip": "channels"}).lossless
    assert not configure(Equalize, {"clip": "drop"}).lossless
    assert configure(Equalize, {"clip": "drop"}).needs == ("calibrator",)
    assert not configure(Equalize, {"absorb": True}).lossless
    assert configure(Equalize, {"activations": True}).needs == ("calibrator",)
