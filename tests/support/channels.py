"""What tests of channel pruning share: the pass on a model, and the same network with the removed channels'
readers or writers at zero.
"""

import numpy as np
import onnx

from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.coupling.state import READ
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.prune_channels.amount import Amount
from onnx_lathe.passes.prune_channels.plan import plan_channels
from onnx_lathe.passes.prune_channels.prune_channels import PruneChannels
from onnx_lathe.runtime.running import ort


def prune_channels(
    model: onnx.ModelProto, context: Context | None = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = configure(PruneChannels, options).apply(graph, context or Context())
    pruned = export_model(graph)
    contract.check_model(pruned)
    return pruned, report


def zeroed(model: onnx.ModelProto, sparsity: float = 0.3, by_writers: bool = False) -> onnx.ModelProto:
    """The whole network, in which every weight that reads a channel that would be removed is zero: what
    pruning has to compute.

    `by_writers`: the weights, biases and other parameters that write such a channel are zero instead, and
    what reads it is as it was. That is the same where activations are 0 at 0 and no operator looks at
    several channels.
    """
    graph = import_model(model)
    plan = plan_channels(graph, Context(), "l2", Amount(sparsity, "layer", {}, None, 1), PassReport())
    roots = plan.coupling.units.roots(np.arange(len(plan.coupling.units)))
    for slot in plan.coupling.slots.values():
        if (slot.role == READ) == by_writers:
            continue
        values, gone = np.array(read(slot.tensor)), plan.removed[roots[slot.units]]
        for block, rows in zip(np.atleast_2d(gone), np.split(values, len(np.atleast_2d(gone))), strict=True):
            np.moveaxis(rows, slot.axis, 0)[block] = 0
        slot.tensor.values = values
    return export_model(graph)


def assert_same_outputs(
    first: onnx.ModelProto, second: onnx.ModelProto, tolerance: float = 1e-4, batch: int = 2
) -> None:
    """Outputs are equal within `tolerance`, relative to the largest magnitude of each."""
    session = ort.session(first, threads=1)
    feeds = ort.random_feeds(session, batch=batch, seed=0)
    wanted, found = ort.run(session, feeds), ort.run(ort.session(second, threads=1), feeds)
    for name, values in wanted.items():
        assert values.shape == found[name].shape
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance * np.abs(values).max())


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
