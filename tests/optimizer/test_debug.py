"""The layer to blame is named, not its victims; and the part that is written shows the fault by itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.diffing import groups, local
from onnx_lathe.optimizer.diffing.debug import Debugged
from tests.support import faults
from tests.support.command import refused
from tests.support.faults import changed, channel_times, network, node, spliced

Fault = Callable[[onnx.ModelProto], onnx.ModelProto]


@pytest.fixture(scope="module")
def int8() -> onnx.ModelProto:
    """The network's own INT8 build."""
    return onnx_lathe.rewrite(network(), "int8", calibration={"x": faults.samples()})


def debug(folder: Path, candidate: onnx.ModelProto, top: int = 1, **options: object) -> Debugged:
    data = {"x": faults.samples()}
    return onnx_lathe.debug(network(), candidate, folder / "out", data=data, top=top, **options)  # type: ignore[arg-type]


def clipped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cuts off what Relu gives beyond a tenth."""
    stored = [
        onnx.numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 0.1))
    ]
    copy = faults.copied(model)
    copy.graph.initializer.extend(stored)
    return spliced(copy, "b_relu", node("Clip", ["b_relu", "low", "high"], "b_relu_new"))


def not_numbers(model: onnx.ModelProto) -> onnx.ModelProto:
    """The logarithm of values of both signs, and back."""
    return spliced(model, "b", node("Log", ["b"], "b_log"), node("Exp", ["b_log"], "b_new"))


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "one channel's scale": (lambda model: changed(model, "w2", channel_times(3.0)), "node_b", "channel 2"),
    "one bias": (
        lambda model: changed(model, "b3", lambda bias: bias + np.eye(8)[5].astype("f")),
        "node_c",
        "channel 5",
    ),
    "a clipped range": (clipped, "node_b_relu_new", "dB by itself"),
    "not a number": (not_numbers, "node_b_new", "NaN or infinite"),
    "the last layer": (lambda model: changed(model, "w4", channel_times(-1.0, 7)), "node_y", "channel 7"),
}
"""Name -> (fault, the node to blame, what is said of it)."""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_layer_is_named_and_written(tmp_path: Path, fault: str) -> None:
    make, guilty, said = FAULTS[fault]
    found = debug(tmp_path, make(network()))
    assert found.failing == 1
    [culprit] = found.culprits
    assert culprit.node == guilty
    assert said in culprit.reason
    assert_reproduced(tmp_path / "out", culprit.own)


def assert_reproduced(folder: Path, own: float | None, lines: int = 1) -> None:
    """run.py, which imports no Lathe, shows an error like the one that was found."""
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "input.npz", "run.py", "README.md"}
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    done = subprocess.run([sys.executable, "run.py"], cwd=folder, capture_output=True, text=True, check=True)
    [line] = done.stdout.splitlines()
    if own is not None and np.isfinite(own):
        assert float(line.split(": ")[1].split(" dB")[0]) < own + 1.0
    else:
        assert " 0 not finite" not in line


@pytest.mark.parametrize("fault", ["one channel's scale", "the last layer"])
def test_a_fault_is_found_in_an_int8_build(tmp_path: Path, int8: onnx.ModelProto, fault: str) -> None:
    weight, channel, guilty = ("w2", 2, "node_b") if fault.startswith("one") else ("w4", 7, "node_y")
    scale = next(
        name
        for one in int8.graph.node
        if one.op_type == "DequantizeLinear" and one.output[0] == weight
        for name in one.input[1:2]
    )
    found = debug(tmp_path, changed(int8, scale, channel_times(3.0, channel)))
    assert [culprit.node for culprit in found.culprits] == [guilty]
    assert any(f"'{weight}'" in one for one in found.culprits[0].stored)
    assert_reproduced(tmp_path / "out", found.culprits[0].own)


def test_a_range_is_to_blame_and_not_the_layers_after_it(tmp_path: Path, int8: onnx.ModelProto) -> None:
    quantizer = next(
        one for one in int8.graph.node if one.op_type == "QuantizeLinear" and one.input[0] == "a_relu"
    )
    small = changed(int8, quantizer.input[1], lambda scale: scale / 8)
    found = debug(tmp_path, small)
    assert [culprit.base for culprit in found.culprits] == ["a_relu"]
    assert [name.split()[0] for name in found.culprits[0].nodes] == ["QuantizeLinear", "DequantizeLinear"]


def test_a_good_int8_build_has_no_culprit(
    tmp_path: Path, int8: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(network(), tmp_path / "a.onnx")
    onnx.save(int8, tmp_path / "b.onnx")
    np.savez(tmp_path / "data.npz", x=faults.samples())
    assert main(arguments(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("nothing found: no layer is below ")
    assert not (tmp_path / "out").exists()


def arguments(folder: Path, *more: str) -> list[str]:
    models = [str(folder / "a.onnx"), str(folder / "b.onnx")]
    return [
        "debug",
        *models,
        "--data",
        str(folder / "data.npz"),
        "--out",
        str(folder / "out"),
        "--quiet",
        *more,
    ]


def test_two_faults_are_both_found(tmp_path: Path) -> None:
    two = changed(changed(network(), "w1", channel_times(5.0)), "b3", lambda bias: bias + 1)
    found = debug(tmp_path, two, top=2)
    assert {culprit.node for culprit in found.culprits} == {"node_a", "node_c"}
    for number, culprit in enumerate(found.culprits, 1):
        assert culprit.folder == str(tmp_path / "out" / str(number))
        assert_reproduced(tmp_path / "out" / str(number), culprit.own)


def rescaled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Two layers are larger by other factors per channel, which the layers after them make good (equalization)."""
    for layer, reader in (("1", "2"), ("2", "3")):
        factor = np.linspace(0.2, 6, 8, dtype=np.float32)
        model = changed(
            model, f"w{layer}", lambda weight, factor=factor: weight * factor[:, None, None, None]
        )
        model = changed(model, f"b{layer}", lambda bias, factor=factor: bias * factor)
        model = changed(model, f"w{reader}", lambda weight, factor=factor: weight / factor[:, None, None])
    return model


def test_scales_that_moved_are_not_blamed(tmp_path: Path) -> None:
    found = debug(tmp_path, rescaled(network()))
    assert found.culprits == []
    assert any("in another form" in note for note in found.notes)


@pytest.mark.parametrize("weight, guilty", [("w1", "a"), ("w3", "c"), ("w4", "y")])
def test_a_fault_among_scales_that_moved_is_found(tmp_path: Path, weight: str, guilty: str) -> None:
    """Of one in their midst, the part that ends at it or at the layer that makes the scales good."""
    found = debug(tmp_path, changed(rescaled(network()), weight, channel_times(-3.0, 4)), top=9)
    assert guilty in {culprit.tensor for culprit in found.culprits}


def test_a_layer_that_changes_its_shape(tmp_path: Path) -> None:
    """What is behind it has another shape too, and is not blamed."""
    wider = faults.copied(network())
    pads = next(one for one in wider.graph.node if one.output[0] == "b").attribute[0]
    pads.ints[:] = [0, 1, 0, 1]
    del wider.graph.node[6:], wider.graph.output[:]
    base = faults.copied(wider)
    next(one for one in base.graph.node if one.output[0] == "b").attribute[0].ints[:] = [1, 1, 1, 1]
    for model in (base, wider):
        model.graph.output.append(
            onnx.helper.make_tensor_value_info("c_relu", onnx.TensorProto.FLOAT, [None] * 4)
        )
    found = onnx_lathe.debug(base, wider, tmp_path / "out", data={"x": faults.samples()})
    assert [culprit.node for culprit in found.culprits] == ["node_b"]
    assert "it makes [6, 8, 6, 8] where the base makes [6, 8, 8, 8]" in found.culprits[0].reason


def test_a_shape_that_is_made_good_again_is_named_inside(tmp_path: Path) -> None:
    fewer = changed(network(), "w2", lambda weight: weight[:6])
    fewer = changed(changed(fewer, "b2", lambda bias: bias[:6]), "w3", lambda weight: weight[:, :6])
    found = debug(tmp_path, fewer)
    assert [culprit.node for culprit in found.culprits] == ["node_c"]
    assert "inside it 'b' has shape [6, 6, 8, 8], [6, 8, 8, 8] in the base" in found.culprits[0].reason
    assert_reproduced(tmp_path / "out", found.culprits[0].own)


def unfit(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights for five channels of eight: ONNX Runtime does not load it."""
    return changed(model, "w3", lambda weight: weight[:, :5])


def indivisible(model: onnx.ModelProto) -> onnx.ModelProto:
    """48 values in 7 rows: it loads, since the batch is open, and does not run."""
    copy = faults.copied(model)
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, -1], np.int64), "sizes"))
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 8], np.int64), "back"))
    cut = node("Reshape", ["flat", "sizes"], "flat_cut")
    return spliced(copy, "flat", cut, node("Reshape", ["flat_cut", "back"], "flat_new"))


@pytest.mark.parametrize("fault, tensor", [(unfit, "c"), (indivisible, "flat_cut")])
def test_a_model_that_is_refused_is_cut_down_to_a_node(tmp_path: Path, fault: Fault, tensor: str) -> None:
    [culprit] = debug(tmp_path, fault(network())).culprits
    assert culprit.tensor == tensor
    assert len(onnx.load(tmp_path / "out" / "model.onnx").graph.node) == 1
    assert "ONNX Runtime cannot " in culprit.refusal
    assert str(tmp_path) not in culprit.refusal
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path / "out", capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "onnxruntime" in done.stderr


def test_a_model_that_does_not_run_needs_no_data(tmp_path: Path) -> None:
    found = onnx_lathe.debug(network(), unfit(network()), tmp_path / "out")
    assert [culprit.tensor for culprit in found.culprits] == ["c"]


def test_codebooks_and_external_data(tmp_path: Path) -> None:
    """A wrong codebook entry; the weights of both files lie beside them."""
    small = onnx_lathe.rewrite(network(), "codebook(bits=4)")
    book = next(
        name
        for one in small.graph.node
        if one.op_type == "Gather" and one.output[0] == "w2"
        for name in one.input[:1]
    )
    wrong = changed(
        small, book, lambda values: values * np.where(np.arange(len(values)) == 3, -4, 1).astype("f")
    )
    for name, model in (("a", small), ("b", wrong)):
        onnx.save(
            model,
            tmp_path / f"{name}.onnx",
            save_as_external_data=True,
            location=f"{name}.data",
            size_threshold=0,
        )
    np.savez(tmp_path / "data.npz", x=faults.samples())
    assert main(arguments(tmp_path)) == 0
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert [one.op_type for one in written.graph.node][-2:] == ["Gather", "Conv"]
    assert {one.name for one in written.graph.output} == {"b"}


def test_layers_of_a_large_network_are_run_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    tapped = local.tapped
    monkeypatch.setattr(
        local, "tapped", lambda model, names: asked.append(len(names)) or tapped(model, names)
    )
    monkeypatch.setattr(groups.grouped, "__defaults__", (1 << 15,))
    found = debug(tmp_path, changed(network(), "w2", channel_times(3.0)))
    assert [culprit.node for culprit in found.culprits] == ["node_b"]
    assert len(asked) > 4
    assert max(asked) < 9


def test_the_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(), tmp_path / "a.onnx")
    onnx.save(changed(network(), "w2", channel_times(3.0)), tmp_path / "b.onnx")
    np.savez(tmp_path / "data.npz", x=faults.samples())
    assert main(arguments(tmp_path, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["culprits"][0]["node"] == "node_b"
    assert found["layers"][0]["verdict"] == "equal"
    victims = [one for one in found["layers"] if one["tensor"] == "c"]
    assert victims[0]["own"] is None
    assert victims[0]["accumulated"] < 40


@pytest.mark.parametrize(
    "more, reason",
    [
        (["--top", "0"], "--top takes a number from 1 on"),
        (["--at", "loud"], "--at takes a number of dB such as 30dB, not 'loud'"),
        (["--samples", "0"], "--samples takes a number from 1 on"),
    ],
)
def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], reason: str) -> None:
    for name in "ab":
        onnx.save(network(), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "data.npz", x=faults.samples())
    assert reason in refused(capsys, arguments(tmp_path, *more))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(), tmp_path / "a.onnx")
    onnx.save(network(), tmp_path / "b.onnx")
    np.savez(tmp_path / "data.npz", x=faults.samples())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "name another with --out" in refused(capsys, arguments(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
