"""What running engines leaves in the memory of a GPU that is made up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from onnx_lathe.runtime.processes import environment
from tests.support import gpu, quantized
from tests.support.engines import build

pytestmark = pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())
RUNS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, tensorrt
from onnx_lathe.runtime.targets.tensorrt.cuda import Cuda
from onnx_lathe.runtime.targets.tensorrt.execution import Engine
from onnx_lathe.runtime.targets.tensorrt.worker import make_logger
cuda = Cuda()
engine = Engine(tensorrt, make_logger(tensorrt, None), cuda, Path(sys.argv[2]).read_bytes())
blocks = []
for count in (8, 8, 2, 8, 4, 8):
    outputs, _ = engine.run({"x": np.ones((count, 3), np.float32)})
    assert outputs["found"].shape == (2, 3 * count), outputs
    blocks.append(cuda._library.fake_blocks())
print(json.dumps(blocks))
"""


def test_runs_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = gpu.Machine(tmp_path, monkeypatch)
    nodes = [helper.make_node("NonZero", ["x"], ["found"], "nonzero")]
    model = quantized.model(nodes, {"x": ["n", 3]}, {"found": ([2, "k"], TensorProto.INT64)}, {})
    engine = build(machine, model, batch="1:4:8")
    command = [sys.executable, "-c", RUNS, str(machine.folder), str(engine)]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=120)
    blocks = json.loads(done.stdout)
    assert len(set(blocks)) == 1, blocks
