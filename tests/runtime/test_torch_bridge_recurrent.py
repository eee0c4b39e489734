"""Recurrent layers of the bridge: what PyTorch's exporters write computes and trains as in PyTorch; lengths of
zero; and what is refused.
"""

import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.running import ort
from tests.support.builders import build as built
from tests.support.operator_case import build, expected
from tests.support.recurrent import UNITS, recurrent_case, recurrent_network

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule, unsupported  # noqa: E402


class Network(torch.nn.Module):
    """Two recurrent layers, and a linear one on the last step."""

    def __init__(self, kind: str, bidirectional: bool) -> None:
        super().__init__()
        self.layers = getattr(torch.nn, kind)(6, 8, 2, batch_first=True, bidirectional=bidirectional)
        self.head = torch.nn.Linear(16 if bidirectional else 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x)[0][:, -1])


def exported(network: Network, x: torch.Tensor, dynamo: bool) -> onnx.ModelProto:
    if dynamo:
        pytest.importorskip("onnxscript")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters' own
        torch.onnx.export(network, (x,), buffer, dynamo=dynamo, verbose=False, input_names=["x"])
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_an_export_computes_and_trains_as_the_original(kind: str, bidirectional: bool, dynamo: bool) -> None:
    network, x = Network(kind, bidirectional).eval(), torch.randn(4, 5, 6)
    model = exported(network, x, dynamo)
    module = GraphModule(model)
    assert torch.allclose(module(x), network(x), atol=1e-5)
    network(x).square().sum().backward()
    module(x).square().sum().backward()
    wanted = sum(float(parameter.grad.square().sum()) for parameter in network.parameters())
    found = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None for gradient in found)
    if kind not in {node.op_type for node in model.graph.node}:
        return  # written out step by step, with what the first step computes from zeros as constants
    # ONNX has the same elements in other places, so their squares have one sum
    assert sum(float(gradient.square().sum()) for gradient in found) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("attributes", [{}, {"linear_before_reset": 1}])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_empty_sequence_leaves_nothing_but_the_initial_state(
    op: str, attributes: dict[str, int], direction: str
) -> None:
    if attributes and op != "GRU":
        pytest.skip("only GRU has a reset gate")
    item = recurrent_case(op, direction, [3, 0, 5], initial=True, **attributes)
    y, *states = GraphModule(build(item))(torch.from_numpy(item.inputs[0]))
    assert not y[:, :, 1].any()
    for state, start in zip(states, item.constants[4:], strict=True):
        np.testing.assert_array_equal(state[:, 1].detach().numpy(), start[:, 1])
    reference = expected(item, build(item))
    for found, want in zip((y, *states), reference, strict=True):
        axis = found.dim() - 2
        for sample in (0, 2):
            np.testing.assert_allclose(
                found.detach().numpy().take(sample, axis), want.take(sample, axis), atol=2e-6
            )


@pytest.mark.parametrize(
    "op, attributes, words",
    [
        (
            "LSTM",
            {"activations": ["Sigmoid", "Tanh", "Softsign"]},
            "LSTM with activations Sigmoid, Tanh, Softsign",
        ),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, "GRU with activations HardSigmoid, Tanh"),
        ("RNN", {"activations": ["Affine"]}, "RNN with activations Affine"),
        ("RNN", {"clip": 2.5}, "RNN with clip"),
        ("LSTM", {"input_forget": 1}, "LSTM with input_forget=1"),
    ],
)
def test_what_no_kernel_does_is_refused_by_its_name(op: str, attributes: dict[str, Any], words: str) -> None:
    model = build(recurrent_case(op, **attributes))
    assert [item.op for item in unsupported(model)] == [words]


def test_peepholes_are_refused_by_their_name() -> None:
    item = recurrent_case("LSTM")
    item.constants = [*item.constants[:3], None, None, None, np.ones((1, 3 * UNITS), np.float32)]
    assert [entry.op for entry in unsupported(build(item))] == ["LSTM with peepholes"]


def test_zeros_of_recurrent_weights_stay_zero() -> None:
    model = recurrent_network("LSTM")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "recurrent.r")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[np.abs(values) < 0.1] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    model.metadata_props.add(key="lathe.sparse", value='{"recurrent.r": "unstructured"}')
    module = GraphModule(model)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    module(torch.randn(3, 7, 16)).square().sum().backward()
    optimizer.step()
    after = module.values()["recurrent.r"]
    np.testing.assert_array_equal(after == 0, values == 0)
    assert not np.array_equal(after, values)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_recurrent_layer_trains_beside_others_in_half_precision(op: str, dtype: torch.dtype) -> None:
    module, x = GraphModule(recurrent_network(op)), torch.randn(3, 7, 16)
    exact = module(x)
    with torch.autocast("cpu", dtype):
        output = module(x.to(dtype))
    assert float((output - exact).detach().abs().max()) < 0.05 * float(exact.detach().abs().max())
    output.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("samples", [1, 2])
def test_a_state_of_fewer_samples_is_every_samples_or_an_error(op: str, gates: int, samples: int) -> None:
    """As exporters write one of a fixed batch, while training tries larger ones first."""
    states = {"LSTM": 2}.get(op, 1)
    given = np.random.default_rng(0)
    constants = {
        "w": given.standard_normal((1, gates * 4, 3)),
        "r": given.standard_normal((1, gates * 4, 4)),
        "h": given.standard_normal((1, samples, 4)),
    }
    text = f"y = {op} <hidden_size = 4{', linear_before_reset = 1' if op == 'GRU' else ''}> (x, w, r,,,{', '.join('h' * states)})"
    model = built(f"(float[5, {samples}, 3] x) => (float[5, 1, {samples}, 4] y) {{ {text} }}", **{
        name: values.astype(np.float32) for name, values in constants.items()
    })  # fmt: skip
    x = given.standard_normal((5, 6, 3)).astype(np.float32)
    module = GraphModule(model)
    if samples > 1:
        with pytest.raises(RuntimeError):
            module(torch.from_numpy(x))
        return
    session = ort.session(model)
    rows = [ort.run(session, {"x": x[:, at : at + 1]})["y"] for at in range(6)]
    result = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(result, np.concatenate(rows, 2), atol=1e-6)
