"""The algorithm of a convolution in ncnn: what the file says of it, what the kernels do with that, and what stays
with the runtime's own choice.
"""

import itertools
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.runtime.targets.ncnn.convert import Conversion, convert
from onnx_lathe.runtime.targets.ncnn.dialect import Layer, param_text, write_weights
from onnx_lathe.runtime.targets.ncnn.ncnn import Ncnn
from onnx_lathe.runtime.targets.ort.ort import OnnxRuntime
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRTRTX
from tests.support.builders import build, random
from tests.support.ncnn import fixed_sizes, random_feeds

X86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 kernels are looked at"
)
SAME = "pads = [1, 1, 1, 1]"


def chain(
    channels: tuple[int, ...], size: int, choices: Mapping[str, str], open_size: bool = False
) -> onnx.ModelProto:
    """Conv, ReLU, Conv, ReLU ... of 3 x 3; conv1 is the first."""
    side = "H" if open_size else str(size)
    nodes, weights, source, generator = [], {}, "x", np.random.default_rng(0)
    for number, (inputs, outputs) in enumerate(itertools.pairwise(channels), 1):
        values = generator.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
        weights[f"w{number}"] = values.astype(np.float32)
        nodes.append(f"[conv{number}] c{number} = Conv <{SAME}> ({source}, w{number})")
        nodes.append(f"[relu{number}] r{number} = Relu (c{number})")
        source = f"r{number}"
    nodes.append(f"y = Identity ({source})")
    head = f"(float[1, {channels[0]}, {side}, {side}] x) => (float[1, {channels[-1]}, P, Q] y)"
    return choosing(build(f"{head} {{ {'  '.join(nodes)} }}", **weights), choices)


def choosing(model: onnx.ModelProto, choices: Mapping[str, str]) -> onnx.ModelProto:
    for node in model.graph.node:
        if node.name in choices:
            entry = node.metadata_props.add()
            entry.key, entry.value = metadata.CONV_ALGORITHM, choices[node.name]
    return model


def written(model: onnx.ModelProto, profile: str = "x86") -> Conversion:
    sizes = fixed_sizes(model)
    found = convert(model, sizes, sizes, profile)
    assert not found.refused, found.refused
    return found


def layer_of(found: Conversion, node: str) -> Layer:
    (layer,) = [one for one in found.layers if one.type == "Convolution" and node in one.nodes]
    return layer


def computed(
    model: onnx.ModelProto,
    found: Conversion,
    folder: Path,
    values: np.ndarray | None = None,
    **options: bool,
) -> np.ndarray:
    """The output with these options of the net, of random values if none are given."""
    ncnn = pytest.importorskip("ncnn")
    param, weights = folder / "model.param", folder / "model.bin"
    param.write_text(param_text(found.layers), encoding="utf-8")
    with weights.open("wb") as file:
        write_weights(found.layers, file, False)
    net = ncnn.Net()
    net.opt.num_threads = 1
    for name, value in options.items():
        assert hasattr(net.opt, name)
        setattr(net.opt, name, value)
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(weights)) == 0
    extractor = net.create_extractor()
    array = random_feeds(model, fixed_sizes(model))["x"][0] if values is None else values
    extractor.input(found.inputs[0].blob, ncnn.Mat(array).clone())
    failed, out = extractor.extract(found.outputs[0].blob)
    assert not failed
    return np.array(out).copy()


def test_what_the_file_says(tmp_path: Path) -> None:
    choices = {"conv1": "direct", "conv2": "winograd23", "conv3": "winograd43"}
    found = written(chain((16, 128, 128, 128), 7, choices))
    assert not found.unfollowed
    text = param_text(found.layers)
    (direct,) = [line for line in text.splitlines() if " conv1 " in line]
    (hint,) = [line for line in text.splitlines() if " conv2 " in line]
    (own,) = [line for line in text.splitlines() if " conv3 " in line]
    assert direct.split()[-1] == "31=64"
    assert "-23330=4,3,7,7,128" in hint.split()
    assert "31=" not in hint
    assert "31=" not in own
    assert "-23330" not in own


def test_without_a_profile_nothing_is_said() -> None:
    model = chain((16, 16), 8, {"conv1": "direct"})
    sizes = fixed_sizes(model)
    assert not {30, 31}.intersection(*[layer.params for layer in convert(model, sizes, sizes).layers])


@X86
def test_the_mask_switches_winograd_off(tmp_path: Path) -> None:
    plain, masked = (
        chain((16, 32, 64), 12, {}),
        chain((16, 32, 64), 12, dict.fromkeys(("conv1", "conv2"), "direct")),
    )
    off = computed(plain, written(plain), tmp_path, use_winograd_convolution=False)
    np.testing.assert_array_equal(computed(masked, written(masked), tmp_path), off)
    assert not np.array_equal(computed(plain, written(plain), tmp_path), off)


@X86
@pytest.mark.parametrize("channels, size", [((64, 128), 5), ((128, 128), 8), ((16, 16), 5), ((256, 16), 6)])
def test_the_hint_takes_f23(channels: tuple[int, int], size: int, tmp_path: Path) -> None:
    """As a net does that has no other tiles; the tables here are those of the package."""
    plain, hinted = chain(channels, size, {}), chain(channels, size, {"conv1": "winograd23"})
    only = {"use_winograd43_convolution": False, "use_winograd63_convolution": False}
    wanted = computed(plain, written(plain), tmp_path, **only)
    found = written(hinted)
    assert not found.unfollowed
    np.testing.assert_array_equal(computed(hinted, found, tmp_path), wanted)
    assert not np.array_equal(computed(plain, written(plain), tmp_path), wanted)


@X86
def test_the_hint_takes_f43_where_f63_is_the_default(tmp_path: Path) -> None:
    plain, hinted = chain((32, 16), 15, {}), chain((32, 16), 15, {"conv1": "winograd43"})
    found = written(hinted)
    assert not found.unfollowed
    forced = computed(plain, written(plain), tmp_path, use_winograd63_convolution=False)
    np.testing.assert_array_equal(computed(hinted, found, tmp_path), forced)


@X86
def test_the_hint_takes_f63_where_f43_is_the_default(tmp_path: Path) -> None:
    """No option of the net takes it there: it is what is neither of the others, and right."""
    plain, hinted = chain((48, 40), 24, {}), chain((48, 40), 24, {"conv1": "winograd63"})
    found = written(hinted)
    assert not found.unfollowed
    value = computed(hinted, found, tmp_path)
    for options in ({}, {"use_winograd43_convolution": False}, {"use_winograd_convolution": False}):
        other = computed(plain, written(plain), tmp_path, **options)
        assert not np.array_equal(value, other)
        np.testing.assert_allclose(value, other, atol=1e-4)


@X86
def test_a_hint_is_kept_from_the_layer_behind(tmp_path: Path) -> None:
    """conv2 reads a blob whose size is told, and would take F(2, 3) too."""
    channels, size = (128, 128, 128), 7
    chosen = chain(channels, size, {"conv1": "winograd23", "conv2": "winograd43"})
    found = written(chosen)
    assert [layer.type for layer in found.layers] == ["Input", "Convolution", "Split", "Convolution"]
    assert 30 not in layer_of(found, "conv2").params
    first = chain(channels[:2], size, {"conv1": "winograd23"})
    middle = computed(first, written(first), tmp_path)
    second = chain(channels, size, {})
    del second.graph.node[:2]
    second.graph.input[0].name = "r1"
    sizes = {"r1": (1, 128, 7, 7)}
    plain = convert(second, sizes, sizes, "x86")
    wanted = computed(second, plain, tmp_path, middle)
    np.testing.assert_array_equal(computed(chosen, found, tmp_path), wanted)


def test_no_split_where_the_layer_behind_takes_the_same() -> None:
    found = written(chain((128, 128, 128), 7, {"conv1": "winograd23", "conv2": "winograd23"}))
    assert "Split" not in [layer.type for layer in found.layers]
    found = written(chain((128, 128, 128), 7, {"conv1": "winograd23", "conv2": "direct"}))
    assert "Split" not in [layer.type for layer in found.layers]


@pytest.mark.parametrize(
    "channels, size, word, profile, reason",
    [
        ((64, 64), 56, "winograd23", "x86", "ncnn's x86 kernels take winograd43 or direct here: it stays with winograd43"),
        ((64, 64), 7, "winograd63", "x86", "take winograd43 or winograd23 or direct"),
        ((4, 4), 7, "winograd43", "x86", "take direct here: it stays with direct"),
        ((64, 64), 7, "winograd23", "arm64-fp16", "ncnn's arm64-fp16 kernels take winograd63 or direct"),
    ],
)  # fmt: skip
def test_what_ncnn_cannot_be_made_to_take(
    channels: tuple[int, int], size: int, word: str, profile: str, reason: str
) -> None:
    model = chain(channels, size, {"conv1": word})
    ((node, said),) = Ncnn().check(model, Ncnn.Config(profile=profile))
    assert node == "conv1"
    assert f"{word} is chosen" in said
    assert reason in said
    assert not {30, 31}.intersection(layer_of(written(model, profile), "conv1").params)


def test_a_hint_needs_a_size() -> None:
    model = chain((128, 128), 7, {"conv1": "winograd23"}, open_size=True)
    ((node, said),) = Ncnn().check(model, Ncnn.Config(profile="x86", shapes={"x": "1x128x7x7:1x128x9x9"}))
    assert node == "conv1"
    assert "depends on the size of the input" in said
    assert Ncnn().check(model, Ncnn.Config(profile="x86", shapes={"x": "1x128x7x7"})) == []
    direct = chain((128, 128), 7, {"conv1": "direct"}, open_size=True)
    sizes = {"x": (1, 128, 7, 7)}, {"x": (1, 128, 9, 9)}
    assert layer_of(convert(direct, *sizes, "x86"), "conv1").params[31] == 64


def test_a_choice_without_a_convolution_of_a_kind() -> None:
    text = f"(float[1, 16, 8, 8] x) => (float[1, 16, P, Q] y) {{ [conv1] y = Conv <{SAME}, strides = [2, 2]> (x, w) }}"
    model = choosing(build(text, w=random(16, 16, 3, 3)), {"conv1": "direct"})
    ((node, said),) = Ncnn().check(model, Ncnn.Config(profile="x86"))
    assert node == "conv1"
    assert "no convolution of 3 x 3 in ncnn that has a choice" in said


INT8 = f"""(float[1, 16, 9, 9] x) => (float[1, 16, P, Q] y) {{
    [q] a = QuantizeLinear (x, s, z)
    [dq] b = DequantizeLinear (a, s, z)
    [dw] v = DequantizeLinear <axis = 0> (w, t)
    [conv1] y = Conv <{SAME}> (b, v)
}}"""


def in_int8(word: str) -> onnx.ModelProto:
    weight = np.random.default_rng(0).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    scale, scales = np.array(0.03, np.float32), np.full(16, 0.002, np.float32)
    model = build(INT8, w=weight, t=scales, s=scale, z=np.array(0, np.int8))
    return choosing(model, {"conv1": word})


@X86
def test_layers_of_int8(tmp_path: Path) -> None:
    """The same integers, whatever the algorithm: so the mask is looked at, and Winograd's word refused or its own."""
    direct, own, none = (written(in_int8(word)) for word in ("direct", "winograd43", "winograd23"))
    assert layer_of(direct, "conv1").params[31] == 64
    assert layer_of(direct, "conv1").params[8] == 2
    assert not {30, 31}.intersection(layer_of(own, "conv1").params)
    assert not own.unfollowed
    assert "take winograd43 or direct here" in none.unfollowed[0][1]
    values = [computed(in_int8("direct"), found, tmp_path) for found in (direct, own)]
    np.testing.assert_array_equal(*values)


def test_other_targets_say_once_that_they_choose_themselves() -> None:
    model = chain((16, 16, 16), 8, {"conv1": "direct", "conv2": "winograd43"})
    for target, title in ((OnnxRuntime(), "ONNX Runtime"), (TensorRTRTX(), "TensorRT-RTX")):
        options = target.Config()
        notes = [reason for _, reason in target.check(model, options) if "winograd" in reason]
        assert notes == [
            f"the algorithm that winograd chose for it and 1 other layer does not apply: {title} chooses its own kernels"
        ]
        assert not [one for one in target.check(chain((16, 16), 8, {}), options) if "winograd" in one[1]]


@pytest.mark.parametrize(
    "algorithm, profile, mask",
    [
        ("direct", "arm64-fp16", 1),
        ("direct", "arm64-int8", 1),
        ("winograd63", "arm64-fp32", None),
        ("direct", "arm64-fp32", 64),
        ("direct", "x86", 64),
    ],
)
def test_a_layer_that_sums_in_float32(algorithm: str, profile: str, mask: int | None, tmp_path: Path) -> None:
    """Sums in float32 where the others sum in half precision. Storage stays in half (bit 2): a layer without it would
    read the 16 bits of its blob as float32.
    """
    model = chain((64, 64, 64), 12, {"conv1": algorithm})
    model.graph.node[0].metadata_props.add(key=metadata.CONV_PRECISION, value="float32")
    found = written(model, profile)
    assert not found.unfollowed
    assert layer_of(found, "conv1").params.get(31) == mask
    assert 31 not in layer_of(found, "conv2").params
    assert (" 31=" in param_text(found.layers)) == (mask is not None)
    computed(model, found, tmp_path)


@pytest.mark.parametrize("algorithm", ["winograd43", "winograd63"])
def test_there_is_no_winograd_with_sums_in_float32(algorithm: str) -> None:
    model = chain((64, 64), 12, {"conv1": algorithm})
    model.graph.node[0].metadata_props.add(key=metadata.CONV_PRECISION, value="float32")
    found = written(model, "arm64-fp16")
    ((node, reason),) = found.unfollowed
    assert node == "conv1"
    assert (
        reason
        == f"{algorithm} is chosen, and ncnn sums in float32 by direct convolution alone: it stays with that"
    )
    assert layer_of(found, "conv1").params[31] == 1


def test_int8_has_no_sums_to_widen() -> None:
    model = in_int8("direct")
    (node,) = [node for node in model.graph.node if node.name == "conv1"]
    node.metadata_props.add(key=metadata.CONV_PRECISION, value="float32")
    assert layer_of(written(model, "arm64-int8"), "conv1").params[31] == 64


@pytest.mark.parametrize("profile", ["arm64-fp16", "arm64-int8"])
@pytest.mark.parametrize("inputs, algorithm", [(3, "winograd63"), (256, "winograd43")])
def test_a_layer_in_float_has_the_rule_of_float(inputs: int, algorithm: str, profile: str) -> None:
    """In a network for integers, too."""
    found = written(chain((inputs, 32), 12, {"conv1": algorithm}), profile)
    assert not found.unfollowed
    assert not {30, 31}.intersection(layer_of(found, "conv1").params)
