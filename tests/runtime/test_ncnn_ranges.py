"""Sizes that stay open between two: branches that only those decide, and what the network is then refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.between import decided_within
from onnx_lathe.runtime.targets.core.branches import decided
from onnx_lathe.runtime.targets.ncnn.session import open_files, ports_as_json, ports_from_json
from tests.support.builders import build, random

NUMBERS = {"two": np.array(2), "three": np.array(3), "limit": np.array(48), "small": np.array(12)}
NUMBERS |= {"zero": np.array(0), "huge": np.array(1 << 30, np.int32)}


def branch(condition: str) -> onnx.ModelProto:
    text = f"""(float[1, 3, H, W] x) => (float[1, 3, A, B] y) {{
        s = Shape(x) h = Gather(s, two) w = Gather(s, three) {condition}
        y = If (c) < then_branch = a () => (float[1, 3, A, B] p) {{ p = Neg(x) }}, else_branch = b () => (float[1, 3, A, B] q) {{ q = Relu(x) }} >
    }}"""
    return build(text, **{name: value for name, value in NUMBERS.items() if name in text})


def within(condition: str, heights: tuple[int, int]) -> bool | None:
    """What the condition is between these heights and 20 to 40 columns; None: it is not known."""
    low, high = heights
    return decided_within(branch(condition), {"x": (1, 3, low, 20)}, {"x": (1, 3, high, 40)}).get("c")


MAP = "r = MaxPool <kernel_shape = [8, 8], strides = [8, 8]> (x) t = Shape(r) k = Gather(t, two) "


@pytest.mark.parametrize(
    "condition, heights, known",
    [
        ("c = Greater(h, limit)", (9, 48), False),
        ("c = Greater(h, limit)", (49, 80), True),
        ("c = Greater(h, limit)", (9, 49), None),
        ("c = GreaterOrEqual(h, limit)", (9, 48), None),
        ("c = Less(limit, h)", (9, 48), False),
        ("c = Equal(h, limit)", (9, 47), False),
        ("c = Equal(h, limit)", (49, 80), False),
        ("c = Equal(h, limit)", (9, 80), None),
        ("k = Equal(h, limit) c = Not(k)", (9, 47), True),
        ("k = Equal(h, limit) j = Greater(w, limit) c = Or(k, j)", (9, 47), False),
        ("n = Neg(h) c = Greater(h, n)", (9, 47), None),
        ("m = Sub(limit, h) c = Greater(m, two)", (9, 45), True),
        ("m = Sub(limit, h) c = Greater(m, two)", (9, 46), None),
        (MAP + "c = Equal(k, two)", (24, 40), False),
        (MAP + "c = Equal(k, two)", (8, 40), None),
        ("c = Greater(h, w)", (50, 60), None),
        ("m = Mod(h, small) c = Equal(m, two)", (9, 11), None),
        ("m = Mod(two, small) k = Add(m, h) c = Greater(k, limit)", (9, 46), False),
        ("u = Sub(h, small) v = Sub(h, limit) m = Mul(u, v) c = Less(m, zero)", (12, 48), None),
        ("u = Greater(h, small) v = Less(h, limit) c = And(u, v)", (12, 48), None),
        ("b = Cast <to = 3> (h) k = Cast <to = 7> (b) c = Less(k, zero)", (9, 300), None),
        ("b = Cast <to = 3> (h) k = Cast <to = 7> (b) c = Less(k, zero)", (9, 120), False),
        ("m = Sub(h, small) c = Cast <to = 9> (m)", (9, 20), None),
        ("m = Sub(h, small) c = Cast <to = 9> (m)", (13, 20), True),
        ("b = Cast <to = 6> (h) k = Mul(b, huge) n = Cast <to = 7> (k) c = Less(n, zero)", (2, 9), None),
        ("d = Div(h, two) c = Greater(d, limit)", (9, 97), False),
    ],
)
def test_what_is_the_same_from_one_end_to_the_other(
    condition: str, heights: tuple[int, int], known: bool | None
) -> None:
    assert within(condition, heights) is known


def test_what_all_sizes_decide_needs_no_range() -> None:
    sizes = {"x": (1, 3, 9, 20)}, {"x": (1, 3, 40, 40)}
    assert decided(branch("c = Greater(h, limit)"), *sizes) == {}
    assert decided(branch("c = Greater(h, two)"), *sizes) == {}
    assert decided_within(branch("c = Greater(h, two)"), *sizes) == {"c": True}


def test_a_branch_that_was_sampled_alone_is_refused_between_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Less(m, 0) is False at 12, at 48 and beyond, and True between them."""
    model = branch("u = Sub(h, small) v = Sub(h, limit) m = Mul(u, v) c = Less(m, zero)")
    onnx.save(model, tmp_path / "net.onnx")
    options = "ncnn(shapes={x: 1x3x12x20:1x3x48x40})"
    done = main(["build", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "out"), "--target", options])
    assert (done, "depends on the size of the input" in capsys.readouterr().out) == (4, True)


def test_a_range_is_built_and_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = branch("c = Greater(h, limit)")
    onnx.save(model, tmp_path / "net.onnx")
    build_it = ["build", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "out"), "--quiet", "--force"]
    assert main([*build_it, "--target", "ncnn(shapes={x: 1x3x9x20~1x3x40x40})"]) == 4
    assert "depends on the size of the input" in capsys.readouterr().out
    assert main([*build_it, "--target", "ncnn(shapes={x: 1x3x9x20:1x3x40x40})"]) == 0
    session = open_files(tmp_path / "out" / "model.ncnn.param")
    for height in (9, 33, 40):
        feeds = {"x": random(1, 3, height, 21)}
        np.testing.assert_array_equal(
            session.run(None, feeds)[0], ort.run(ort.session(model), feeds)["y"], strict=False
        )
    with pytest.raises(ModelError, match=r"'x' takes \[1, 3, 9..40, 20..40\], not \[1, 3, 49, 21\]"):
        session.run(None, {"x": random(1, 3, 49, 21)})
    readme = (tmp_path / "out" / "model.ncnn.README.md").read_text()
    assert "3 x 9 to 40 x 20 to 40" in readme
    assert "Keep sizes between those that the table gives" in readme


def test_bounds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    onnx.save(branch("c = Greater(h, limit)"), tmp_path / "net.onnx")
    build_it = ["build", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*build_it, "--target", "ncnn(shapes={x: 1x3x9x20:1x3x40x40})"]) == 0
    said = json.loads((tmp_path / "out" / "model.ncnn.json").read_text())
    (port,), outputs = ports_from_json(said)
    assert (tuple(port.least), tuple(port.greatest)) == ((1, 3, 9, 20), (1, 3, 40, 40))
    for wrong in ({"least": [1, 3, 9]}, {"greatest": [1, 3, 40, 0]}, {"greatest": []}):
        with pytest.raises(ValueError, match="bound"):
            ports_from_json(ports_as_json([replace(port, **wrong)], outputs))  # type: ignore[arg-type]
