"""The command as the tests type it: a run on LeNet-5, and a refusal."""

from pathlib import Path

import pytest

from onnx_lathe.optimizer.cli import main


def data_arguments(data: Path) -> list[str]:
    return ["--train", f"{data}:train", "--eval", f"{data}:test", "--preprocess", "scale=1/255", "--quiet"]


def compile_lenet(
    lenet5: Path, data: Path, out: Path, *more: str, passes: str = "fold,prune(sparsity=0.8),codebook,int8"
) -> int:
    return main(
        [str(lenet5), "--passes", passes, *data_arguments(data), "--out", str(out), "--no-latency", *more]
    )


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 2) -> str:
    """The one line that the refusal prints."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("optimize: ")
    assert "Traceback" not in captured.err
    return lines[0]
