"""prune_nm on models that this project did not write: every weight that can has the pattern, and
the model runs and says so.
"""

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.prune_nm import PruneNM
from onnx_lathe.runtime.running import ort
from tests.support.models import shipped_with_onnx

pytestmark = pytest.mark.usefixtures("unguarded")
LIGHT = shipped_with_onnx("light/light_*.onnx")
MIN_SIZE = 64


def in_fours(node: onnx.NodeProto, weight: np.ndarray) -> np.ndarray | None:
    """[groups, 4]: neighbours along what an output is summed over; None where they are not a multiple of 4."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    rows = np.moveaxis(weight, 0 if node.op_type == "Gemm" and not transposed else 1, -1)
    return None if rows.shape[-1] % 4 else rows.reshape(-1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("light", LIGHT, ids=lambda path: path.stem, indirect=True)
def test_every_light_model_takes_the_pattern(light: onnx.ModelProto) -> None:
    instance = configure(PruneNM, {})
    after, report = apply_pass(instance, light, Context())
    contract.check_structure(light, after, "prune_nm")
    before, pruned = (
        {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
        for model in (light, after)
    )
    layers = {node.input[1]: node for node in light.graph.node if node.op_type in ("Conv", "Gemm")}
    sparse, skipped = (
        metadata.read_sparse(after.metadata_props),
        {skip.node: skip.reason for skip in report.skips},
    )
    for name, node in layers.items():
        whole = in_fours(node, before[name])
        if whole is None or whole.size < MIN_SIZE:
            assert name not in sparse
            assert "do not make groups of 4" in skipped[node.name] or "min_size" in skipped[node.name]
            np.testing.assert_array_equal(pruned[name], before[name])
            continue
        assert sparse[name] == "2:4"
        order = np.argsort(np.abs(whole), axis=1)
        expected = whole.copy()
        np.put_along_axis(expected, order[:, :2], 0, axis=1)
        np.testing.assert_array_equal(in_fours(node, pruned[name]), expected)
    assert len(sparse) + len(skipped) == len(layers)
    assert len(sparse) > len(layers) / 3
    unchanged = before.keys() - layers.keys()
    assert all(np.array_equal(before[name], pruned[name]) for name in unchanged)
    session = ort.session(after, threads=1)
    outputs = ort.run(session, ort.random_feeds(session, batch=1, seed=0))
    assert all(np.isfinite(values).all() for values in outputs.values())
    again, report = apply_pass(instance, after, Context())
    assert again is after
    assert not report.edits
