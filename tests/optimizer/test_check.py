"""`optimize check`: verdicts per layer as a table and as JSON, a whole run for the target ort, and what it
refuses.
"""

import json
from pathlib import Path

import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.placement import CANONICAL
from tests.support.placement import MOBILE, RESIDUAL, network, quantized


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "mobile.onnx"
    onnx.save(quantized(network(MOBILE))[0], path)
    return path


def test_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(model), "--target", "ort,tensorrt-rtx(speed=any)"]) == 0
    shown = capsys.readouterr().out
    assert "ort: 8 of 8 layers run in INT8" in shown
    assert "tensorrt-rtx: 7 of 8 layers run in INT8" in shown
    assert "a depthwise convolution stays float" in shown
    assert "by rule" not in shown
    assert main(["check", str(model), "--target", "tensorrt-rtx"]) == 0
    shown = capsys.readouterr().out
    assert "tensorrt-rtx: 2 of 8 layers run in INT8" in shown
    assert "by rule: a convolution of 8 to 8 channels" in shown


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "canonical.onnx"
    onnx.save(quantized(network(RESIDUAL), CANONICAL)[0], path)
    assert main(["check", str(path), "--target", "ort", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["target"], found["int8_layers"]) == ("ort", 3)
    layers = {layer["node"]: layer for layer in found["layers"]}
    assert layers["Conv_5"] == {
        "node": "Conv_5",
        "op": "Conv",
        "int8": False,
        "reason": "its result is not quantized, without which ONNX Runtime computes it in float; run int8 with --target ort",
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{model}", "--target", "orrt"], "there is no target 'orrt'; did you mean 'ort'"),
        (
            ["{model}", "--target", "onnx"],
            "target 'onnx' writes a file and runs nothing; name what will run it: coreml, jetson, litert, ncnn, ort",
        ),
        (
            ["{model}", "--target", "ort(reduce=true)"],
            "target 'ort' has no option 'reduce'; did you mean 'reduce_range'",
        ),
        (["{model}", "--target", ""], "no target is named"),
        (["{model}"], "required: --target"),
        (["missing.onnx", "--target", "ort"], "missing.onnx"),
        (["{model}", "--target", "ort", "--jsn"], "unknown argument '--jsn'; did you mean '--json'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *(argument.format(model=model) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert message in captured.err
    assert not captured.out


def test_a_run_for_ort_quantizes_for_it_and_says_what_runs(
    lenet5: Path, small_mnist: Path, tmp_path: Path
) -> None:
    data = [
        "--train",
        f"{small_mnist}:train",
        "--eval",
        f"{small_mnist}:test",
        "--preprocess",
        "scale=1/255",
        "--quiet",
        "--no-latency",
    ]
    out = tmp_path / "out"
    arguments = [
        str(lenet5),
        "--passes",
        "fold,int8",
        *data,
        "--target",
        "ort",
        "--gate",
        "top1 drop <= 1%",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    report = json.loads((out / "report.json").read_text())
    (target,) = report["targets"]
    assert target["files"] == ["model.ort.onnx"]
    assert target["details"] == {"int8_layers": 4, "float_layers": 0}
    assert target["quality"]["top1"] > 0.97
    # int8 placed its pairs for ort
    assert main([*arguments[:-4], "--out", str(out), "--target", "onnx", "--resume"]) == 2
