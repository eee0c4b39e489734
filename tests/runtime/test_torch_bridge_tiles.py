"""Convolutions by tiles in float16: what they compute, their gradient, and when they are computed so."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ModelError
from onnx_lathe.metadata import CONV_PRECISION
from onnx_lathe.passes.numerics.tile_arithmetic import by_tiles as simulate
from onnx_lathe.tiles import NCNN
from tests.support.builders import build, random, run
from tests.support.tiles import TILES, choose

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402
from onnx_lathe.runtime.torch_bridge.operators import tiles  # noqa: E402

TOLERANCE = {"winograd23": 1e-2, "winograd43": 3e-2, "winograd63": 1e-1}
"""Largest error over largest result, of 8 channels: float16 has 3 digits, of which transforms cost some."""
SIZES = {"winograd23": 2, "winograd43": 4, "winograd63": 6}
GEOMETRY = {
    "same": "pads = [1, 1, 1, 1]",
    "none": "",
    "one-sided": "pads = [0, 2, 1, 0]",
    "upper": 'auto_pad = "SAME_UPPER"',
    "lower": 'auto_pad = "SAME_LOWER"',
    "valid": 'auto_pad = "VALID"',
}
SIDES = {"none": (0, 0, 0, 0), "valid": (0, 0, 0, 0), "one-sided": (0, 2, 1, 0)}
"""Top, left, bottom, right, of those that are not 1 all round."""


def conv(
    attributes: str = "pads = [1, 1, 1, 1]", kind: type = np.float32, **weights: np.ndarray
) -> onnx.ModelProto:
    given = weights or {"w": random(5, 8, 3, 3), "b": random(5)}
    name = {np.float32: "float", np.float16: "float16"}[kind]
    attributes = f"<{attributes}>" if attributes else ""
    return build(
        f"({name}[n, c, h, v] x) => ({name}[n, o, p, q] y) {{ [conv] y = Conv {attributes} (x, {', '.join(given)}) }}",
        **{key: value.astype(kind) for key, value in given.items()},
    )


def computed(model: onnx.ModelProto, *inputs: np.ndarray, by_tiles: bool = True) -> np.ndarray:
    module = GraphModule(model)
    module.tile(TILES if by_tiles else {})
    with torch.no_grad():
        return module(*map(torch.from_numpy, inputs)).numpy()


def simulated(x: np.ndarray, weight: np.ndarray, sides: Sequence[int], m: int) -> np.ndarray:
    """As the pass winograd simulates it, image by image."""
    top, left, bottom, right = sides
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))).astype(np.float16)
    return np.stack([simulate(image, weight.astype(np.float32), NCNN[m]) for image in padded])


@pytest.mark.parametrize("algorithm", TILES)
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("size", [(7, 13), (12, 12), (3, 1)])
def test_they_are_the_simulation_of_the_pass_winograd(
    algorithm: str, geometry: str, size: tuple[int, int]
) -> None:
    sides = SIDES.get(geometry, (1, 1, 1, 1))
    if min(size[0] + sides[0] + sides[2], size[1] + sides[1] + sides[3]) < 3:
        pytest.skip("smaller than the kernel")
    x, weight = random(3, 8, *size), random(5, 8, 3, 3)
    model = choose(conv(GEOMETRY[geometry], w=weight), algorithm)
    found = computed(model, x)
    wanted = simulated(x, weight, sides, SIZES[algorithm])
    np.testing.assert_array_equal(found, wanted.astype(np.float32))
    exact = run(model, {"x": x})["y"]
    assert 0 < np.abs(found - exact).max() <= TOLERANCE[algorithm] * np.abs(exact).max()


def test_a_bias_is_added_in_float16() -> None:
    weights = {"w": random(5, 8, 3, 3), "b": 100 * random(5)}
    x = random(2, 8, 9, 9)
    found = computed(choose(conv(**weights), "winograd43"), x)
    sums = simulated(x, weights["w"], (1, 1, 1, 1), 4)
    wanted = sums + weights["b"].astype(np.float16).reshape(-1, 1, 1)
    assert wanted.dtype == np.float16
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_samples_are_computed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = choose(conv(), "winograd63"), random(5, 8, 9, 9)
    whole = computed(model, x)
    monkeypatch.setattr(tiles, "PIECE", 2 * 64 * 8 * 4)  # two samples
    np.testing.assert_array_equal(computed(model, x), whole)
    monkeypatch.setattr(tiles, "PIECE", 1)
    np.testing.assert_array_equal(computed(model, x), whole)


def test_a_model_in_float16_stays_in_it() -> None:
    weight, x = random(5, 8, 3, 3), random(2, 8, 9, 9).astype(np.float16)
    found = computed(choose(conv(kind=np.float16, w=weight), "winograd23"), x)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, simulated(x, weight.astype(np.float16), (1, 1, 1, 1), 2))


def test_the_memory_format_stays() -> None:
    module = GraphModule(choose(conv(), "winograd43"))
    module.tile(TILES)
    x = torch.from_numpy(random(2, 8, 9, 9))
    last = module(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, module(x), rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", TILES)
@pytest.mark.parametrize("geometry", ["same", "one-sided", "upper"])
def test_gradients_are_those_of_the_convolution(algorithm: str, geometry: str) -> None:
    module = GraphModule(choose(conv(GEOMETRY[geometry]), algorithm))
    x = torch.from_numpy(random(2, 8, 9, 10))
    slope = torch.from_numpy(random(*module(x).shape))

    def gradients(by_tiles: bool) -> list[torch.Tensor]:
        module.tile(TILES if by_tiles else {})
        module.zero_grad()
        data = x.clone().requires_grad_()
        module(data).mul(slope).sum().backward()
        return [data.grad, *(weight.grad for weight in module.weights().values())]

    for by_tiles, direct in zip(gradients(True), gradients(False), strict=True):
        assert by_tiles.dtype == torch.float32
        # that of data and weights rounded to float16
        assert (by_tiles - direct).abs().max() <= 1e-3 * direct.abs().max()


def test_only_convolutions_that_carry_one_of_the_names_are_computed_so() -> None:
    weights = {name: random(8, 8, 3, 3) / 8 for name in "uvw"}
    text = "(float[n, 8, h, v] x) => (float[n, 8, p, q] y) { a = Conv(x, u)  b = Conv(a, v)  y = Conv(b, w) }"
    x = random(1, 8, 12, 12)
    plain = computed(build(text, **weights), x)
    np.testing.assert_array_equal(plain, computed(build(text, **weights), x, by_tiles=False))
    direct = choose(choose(build(text, **weights), "direct"), "direct", 2)
    np.testing.assert_array_equal(computed(direct, x), plain)
    chosen = choose(choose(build(text, **weights), "winograd63", 1), "direct", 2)
    assert (computed(chosen, x) != plain).any()
    np.testing.assert_array_equal(computed(chosen, x, by_tiles=False), plain)
    np.testing.assert_array_equal(GraphModule(chosen)(torch.from_numpy(x)).numpy(force=True), plain)


@pytest.mark.parametrize(
    "attributes, shape, reason",
    [
        ("strides = [2, 2]", (4, 8, 3, 3), r"its strides are \[2, 2\]"),
        ("dilations = [1, 2]", (4, 8, 3, 3), r"its dilations are \[1, 2\]"),
        ("group = 2", (4, 4, 3, 3), "it has 2 groups"),
        ("kernel_shape = [1, 1]", (4, 8, 1, 1), r"its kernel is \[1, 1\]"),
        ("", (4, 8, 1, 1), "convolution by w is for kernels of 3 x 3, not 1 x 1"),
    ],
)
def test_a_choice_that_a_convolution_cannot_have_is_refused(
    attributes: str, shape: tuple[int, ...], reason: str
) -> None:
    model = choose(conv(attributes, w=random(*shape)), "winograd63")
    with pytest.raises(ModelError, match=f"{reason}; remove the entry, or leave winograd= out"):
        computed(model, random(1, 8, 9, 9))
    assert computed(model, random(1, 8, 9, 9), by_tiles=False).shape[1] == 4


def test_a_convolution_in_float32_is_none_of_these() -> None:
    model, x = choose(conv(), "winograd63"), random(1, 8, 9, 9)
    plain = computed(model, x, by_tiles=False)
    assert (computed(model, x) != plain).any()
    model.graph.node[0].metadata_props.add(key=CONV_PRECISION, value="float32")
    np.testing.assert_array_equal(computed(model, x), plain)


def test_another_operator_with_a_choice_is_refused() -> None:
    model = choose(build("(float[n] x) => (float[n] y) { [other] y = Mul(x, w) }", w=random(1)), "winograd43")
    with pytest.raises(ModelError, match=r"node 'other': .* is winograd43, but .* as Mul"):
        GraphModule(model).tile(TILES)


def test_what_overflows_float16_is_not_finite() -> None:
    found = computed(
        choose(conv(w=np.full((1, 1, 3, 3), 100, np.float32)), "winograd23"),
        np.full((1, 1, 4, 4), 1e3, np.float32),
    )
    assert not np.isfinite(found).any()


def test_computing_again_gives_the_same_bits() -> None:
    text = "(float[n, 8, h, v] x) => (float[n, 8, h, v] y) { a = Conv <pads = [1, 1, 1, 1]> (x, u)  r = Relu(a)  y = Conv <pads = [1, 1, 1, 1]> (r, w) }"
    model = build(text, u=random(8, 8, 3, 3), w=random(8, 8, 3, 3))
    module = GraphModule(choose(choose(model, "winograd63"), "winograd43", 2))
    module.tile(TILES)
    x = torch.from_numpy(random(2, 8, 9, 9))

    def gradients() -> list[torch.Tensor]:
        module.zero_grad()
        module(x).square().sum().backward()
        return [weight.grad.clone() for weight in module.weights().values()]

    whole = gradients()
    module.checkpoint(cuts=(1, 2))
    for again, one in zip(gradients(), whole, strict=True):
        assert torch.equal(again, one)
