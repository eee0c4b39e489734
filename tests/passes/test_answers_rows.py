"""Rows of what layers read and answer, where a layer's first axis is not the samples'."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.graph.answers.aligned import answers, layer_of
from onnx_lathe.passes.graph.layers import weights
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.numerics.second_order import kept_rows
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from tests.support.answers import applied, context, errors
from tests.support.builders import build, random
from tests.support.codebooks import mixed

INT4 = {"rounding": "hessian", "min_size": 16, "group": 8}


def turned() -> onnx.ModelProto:
    """A convolution over samples: it reads [1, 8, N]."""
    return build(
        """(float[N, 8] x) => (float[o, 6, N] y) {
            t = Transpose <perm = [1, 0]> (x)  u = Unsqueeze (t, axis)  y = Conv <pads = [1, 1]> (u, w, b) }""",
        21,
        w=random(6, 8, 3),
        b=random(6),
        axis=np.array([0], np.int64),
    )


def video(frames: int) -> onnx.ModelProto:
    """A convolution of frames: it reads [frames * N, 8, 6, 6]."""
    return build(
        f"""(float[N, {frames}, 8, 6, 6] x) => (float[M, 6, 6, 6] y) {{
            u = Reshape (x, shape)  y = Conv <pads = [1, 1, 1, 1]> (u, w, b) }}""",
        21,
        w=random(6, 8, 3, 3),
        b=random(6),
        shape=np.array([-1, 8, 6, 6], np.int64),
    )


def moments(model: onnx.ModelProto, x: np.ndarray) -> SplitJointMoments:
    graph = import_model(model)
    layers = [layer_of(graph, weight) for weight in weights(graph, refuse=lambda node, reason: None)]
    assert not any(isinstance(layer, str) for layer in layers)
    where = context(model, x=x)
    known = [layer for layer in layers if not isinstance(layer, str)]
    ((_, found),) = answers(graph, known, model, where.need_calibrator())
    assert isinstance(found, SplitJointMoments)
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("int4", INT4),
        ("int8", {"rounding": "hessian", "activations": False}),
        ("prune", {"score": "obs", "sparsity": 0.5, "min_size": 16}),
        ("refit", {}),
    ],
)
def test_a_convolution_may_run_along_the_samples(name: str, options: dict[str, object]) -> None:
    model = turned()
    found, _ = applied(name, model, context(model, x=mixed(80, 8)), **options)
    assert errors(mixed(40, 8), model, found)[0] < (0.5 if name == "prune" else 0.02)


def test_of_each_sample_every_frame_is_read() -> None:
    x = mixed(40, 3, 8, 6, 6)
    found = moments(video(3), x)
    assert found.samples == 40
    assert found.fitted.count == 30 * 3 * 36
    assert found.held.count == 10 * 3 * 36
    some = moments(
        video(7), mixed(40, 7, 8, 6, 6)
    )  # of more than are enough for a sample as many of each frame
    assert some.fitted.count == 30 * 7 * (128 // 7)


def test_samples_kept_apart_are_no_part_of_what_is_fitted() -> None:
    # a sample is a power of 2 throughout, so that a sum tells which samples it is of
    x = np.broadcast_to(2.0 ** np.arange(12).reshape(12, 1, 1, 1, 1), (12, 3, 8, 6, 6)).astype(np.float32)
    found = moments(video(3), np.ascontiguousarray(x))
    inside = 4  # of 3 x 3, which never reads padding
    sums = [part.mean_x[0, inside] * part.count / (3 * 36) for part in (found.fitted, found.held)]
    np.testing.assert_allclose(sums, np.round(sums), atol=1e-3)
    assert [round(total).bit_count() for total in sums] == [9, 3]
    assert sum(round(total) for total in sums) == 2**12 - 1


@pytest.mark.parametrize("most", [4, 8, 16, 32])
def test_rows_that_are_kept_are_of_all_columns_and_lines_of_an_image(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_rows, "KEPT_BYTES", 4 * 2 * 16 * most)
    places = np.stack(np.divmod(np.arange(64, dtype=np.float32), 8), axis=1)[None]  # line, column
    found = []
    for _ in range(2):
        rows = kept_rows.SplitRows(kept_rows.Activation(0.0), 16, 1, 1, 1, np.random.default_rng(0))
        for number in range(64):
            rows.add(places, places[:, :, :1], places[:, :, 1:], number)
        parts = rows.rows()
        assert parts is not None
        found.append(parts[0].x[0])
        assert len(found[-1]) == 48 * most
        for axis in (0, 1):
            assert set(found[-1][:, axis]) == set(range(8))
        (fitted, _) = parts
        np.testing.assert_array_equal(fitted.target[0, :, 0], fitted.x[0, :, 1])
        np.testing.assert_array_equal(np.asarray(fitted.given)[0, :, 0], fitted.x[0, :, 0])
    np.testing.assert_array_equal(*found)
