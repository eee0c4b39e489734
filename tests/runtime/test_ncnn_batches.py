"""What a first dimension is: a batch, of which ncnn takes one sample after another, or no batch; and on which inputs
what was written is compared.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.core.sizes import from_data
from tests.support.builders import build, random


def built(text: str, tmp_path: Path, target: str = "ncnn", **constants: np.ndarray) -> tuple[int, dict]:  # type: ignore[type-arg]
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    onnx.save(build(text, **constants), path)
    code = main(["build", str(path), "--target", target, "--out", str(out), "--quiet"])
    return code, json.loads((out / "report.json").read_text())["targets"][0]


@pytest.mark.parametrize(
    "body",
    [
        "y = Softmax <axis = 0> (x)",
        "m = ReduceMean <axes = [0], keepdims = 1> (x) y = Sub(x, m)",
        "y = Gemm <transB = 1> (x, x)",
        "y = Transpose <perm = [1, 0]> (x)",
    ],
)
def test_samples_that_have_to_do_with_each_other_are_refused(body: str, tmp_path: Path) -> None:
    code, found = built(f"(float[N, 8] x) => (float[P, Q] y) {{ {body} }}", tmp_path)
    assert code == 4
    assert "of two samples at once is another" in found["error"]
    assert "shapes={x: 2x8}" in found["error"]
    assert (found["files"], found["size_bytes"]) == ([], 0)
    assert not list((tmp_path / "out").glob("model.ncnn*"))


def test_a_size_for_the_first_dimension_makes_it_no_batch(tmp_path: Path) -> None:
    text = (
        "(float[L, 8] x) => (float[L, 8] y) { m = ReduceMean <axes = [0], keepdims = 1> (x) y = Sub(x, m) }"
    )
    code, found = built(text, tmp_path, "ncnn(shapes={x: 64x8})")
    assert code == 0, found["error"]
    assert found["details"]["verified"]["relative_error"] < 1e-5


def test_open_sizes_are_compared_at_both(tmp_path: Path) -> None:
    """Without data, made-up inputs of 1 x 1 would tell nothing of a window."""
    text = """(float[1, 3, H, W] x) => (float[1, 4, P, Q] y) {
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
        y = Conv <pads = [1, 1, 1, 1]> (p, w)
    }"""
    code, found = built(text, tmp_path, w=random(4, 3, 3, 3))
    assert code == 0, found["error"]
    assert found["details"]["open_sizes"]


def test_calls_of_the_model_have_no_batch() -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["L", 8])
    model = onnx.helper.make_model(onnx.helper.make_graph([], "sizes", [value], []))
    assert from_data(model, {}, {"x": (20, 8)}, per_call=True) == {"x": ((20, 8), (52, 8))}
    assert from_data(model, {}, {"x": (20, 8)}) == {}
