"""Real builds with TensorRT-RTX, which needs no GPU: what the check says of layers is what came of them."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.tensorrt.tensorrt import NO_INT8_ON_TURING, TensorRTRTX
from tests.support import quantized
from tests.support.one_layer import BAD, GOOD, one_layer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


def built(model: onnx.ModelProto, folder: Path, **options: Any) -> dict[str, Any]:
    onnx.save(model, folder / "model.onnx")
    config = TensorRTRTX.Config(**options)
    artifact = TensorRTRTX().build(folder / "model.onnx", folder, config, lambda text: None)
    sidecar = json.loads((folder / "model.tensorrt-rtx.engine.json").read_text())
    assert sidecar["int8"] == artifact.details["int8"]
    return {"notes": artifact.notes, "facts": artifact.facts, **artifact.details}


def test_a_network_in_int8(tmp_path: Path) -> None:
    found = built(quantized.lenet(codebook=False), tmp_path, batch="1:8:16")
    table = found["int8"]
    assert (table["source"], table["note"]) == ("the builder's log", "")
    assert table["convolutions"]["int8"] == table["convolutions"]["kept"] == 1.0
    assert table["layers"]["macs"] == 8 * (8 * 9 * 28 * 28 + 8 * 8 * 9 * 14 * 14 + 10 * 392)
    assert [(layer["node"], layer["type"], layer["reason"]) for layer in table["each"]] == [
        ("conv1", "int8", ""),
        ("conv2", "int8", ""),
        ("fc", "int8", ""),
    ]
    assert found["notes"] == ()
    assert found["facts"][1].startswith("in INT8, by the builder's log: 100.0 % of the convolutions' MACs")


def test_weights_of_int8_take_a_quarter(tmp_path: Path) -> None:
    wide = {"image": (1, 64, 8, 8), "codes": (256, 64, 3, 3)}
    int8 = built(one_layer(**wide), tmp_path)["weights_bytes"]
    model = one_layer(**wide)
    del model.graph.node[:-1]
    weight = np.random.default_rng(0).normal(0, 1, wide["codes"]).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model.graph.node[0].input[:] = ["x", "w"]
    floating = built(model, tmp_path)
    assert floating["int8"] is None
    assert floating["weights_bytes"] >= weight.nbytes
    assert int8 <= 0.27 * floating["weights_bytes"]


@pytest.mark.parametrize("name", GOOD)
def test_promised_and_kept(tmp_path: Path, name: str) -> None:
    table = built(one_layer(**GOOD[name]), tmp_path)["int8"]
    assert [(layer["promised"], layer["type"]) for layer in table["each"]] == [(True, "int8")]
    assert table["layers"]["kept"] == 1.0


@pytest.mark.parametrize("name", BAD)
def test_not_promised_and_in_float(tmp_path: Path, name: str) -> None:
    layer, rule = BAD[name]
    found = built(one_layer(**layer), tmp_path)
    (each,) = found["int8"]["each"]
    assert each["promised"] is False
    assert each["type"] != "int8"
    assert rule in each["reason"]
    assert found["notes"] == ()
    assert found["int8"]["layers"]["int8"] == 0.0


def test_nodes_without_names(tmp_path: Path) -> None:
    model = one_layer()
    for node in model.graph.node:
        node.name = ""
    (each,) = built(model, tmp_path)["int8"]["each"]
    assert (each["node"], each["type"]) == ("Conv_3", "int8")


@pytest.mark.parametrize("compute", ["sm75", "sm86+sm75"])
def test_turing_puts_all_gpus_in_float_and_the_check_says_so(tmp_path: Path, compute: str) -> None:
    model = one_layer()
    found = built(model, tmp_path, compute=compute)
    assert [(layer["promised"], layer["type"]) for layer in found["int8"]["each"]] == [(False, "float32")]
    assert found["notes"] == ()
    target, config = TensorRTRTX(), TensorRTRTX.Config(compute=compute)
    assert target.check(model, config) == [("layer", NO_INT8_ON_TURING)]
    assert not target.layers(model, config)[0].int8
    assert target.check(model, TensorRTRTX.Config()) == []
    assert target.layers(model, TensorRTRTX.Config())[0].int8


def test_the_report_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(quantized.lenet(codebook=False), tmp_path / "net.onnx")
    out = tmp_path / "out"
    assert main(["build", str(tmp_path / "net.onnx"), "--target", "tensorrt-rtx", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "    in INT8, by the builder's log: 100.0 % of the convolutions' MACs (100.0 % promised)" in said
    (target,) = json.loads((out / "report.json").read_text())["targets"]
    assert target["facts"][0].startswith("weights in the engine: ")
    assert target["details"]["int8"]["convolutions"]["kept"] == 1.0
