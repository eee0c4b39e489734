"""Time and memory of prune and codebook on a model of VGG-16's size: 138 million random weights (He-scaled
normal), 553 MB.

    python benchmarks/vgg16.py [--only passes|command]

passes: import, prune(sparsity=0.9), export, import, codebook(bits=4), export, save, in one process after
loading. command: `optimize MODEL --passes "prune(sparsity=0.9),codebook(bits=4)"`, with all its checks and
measurements. Each runs in a fresh process, whose highest resident memory is read when it ends. Floors for
the passes: at most 20 s on two cores, at most 3.5 times the size of the model file.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PASSES = "prune(sparsity=0.9),codebook(bits=4)"
# output channels; 0 is a MaxPool
CONVOLUTIONS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
DENSE = (4096, 4096, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("passes", "command"))
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        task, *paths = options.worker
        {"make": make_model, "passes": run_passes}[task](*map(Path, paths))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model, result = Path(scratch, "vgg16.onnx"), Path(scratch, "result.onnx")
        measure([__file__, "--worker", "make", str(model)])
        commands = {
            "passes": [__file__, "--worker", "passes", str(model), str(result)],
            "command": [
                "-m",
                "onnx_lathe",
                str(model),
                "--passes",
                PASSES,
                "--quiet",
                "--out",
                str(Path(scratch, "out")),
            ],
        }
        size = model.stat().st_size
        for name in [options.only] if options.only else commands:
            seconds, peak = measure(commands[name])
            print(
                f"{name}: {seconds:.1f} s in all, peak memory {peak / 1e6:,.0f} MB, {peak / size:.2f} times the file's {size / 1e6:.0f} MB"
            )


def measure(arguments: list[str]) -> tuple[float, int]:
    """Seconds and highest resident memory in bytes of a fresh Python process with the arguments."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT)
    # of this child alone; getrusage keeps the largest of all children
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(arguments)}")
    return time.perf_counter() - started, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make_model(path: Path) -> None:
    generator = np.random.default_rng(0)
    nodes, tensors = [], []
    channels, top = 3, "image"

    def layer(op: str, shape: tuple[int, ...], **attributes: object) -> None:
        nonlocal top
        name = f"layer{sum(node.op_type in ('Conv', 'Gemm') for node in nodes) + 1}"
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        weight = generator.standard_normal(shape, dtype=np.float32) * scale
        tensors.append(
            helper.make_tensor(f"{name}.weight", TensorProto.FLOAT, shape, weight.tobytes(), raw=True)
        )
        tensors.append(
            helper.make_tensor(f"{name}.bias", TensorProto.FLOAT, shape[:1], np.zeros(shape[0], np.float32))
        )
        nodes.append(
            helper.make_node(op, [top, f"{name}.weight", f"{name}.bias"], [f"{name}.out"], name, **attributes)
        )
        top = f"{name}.out"

    def step(op: str, **attributes: object) -> None:
        nonlocal top
        nodes.append(helper.make_node(op, [top], [f"{top}.{op}"], f"{top}.{op}", **attributes))
        top = f"{top}.{op}"

    for width in CONVOLUTIONS:
        if width:
            layer("Conv", (width, channels, 3, 3), pads=[1, 1, 1, 1])
            step("Relu")
            channels = width
        else:
            step("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    step("Flatten")
    width = channels * 7 * 7
    for number, outputs in enumerate(DENSE, 1):
        layer("Gemm", (outputs, width), transB=1)
        width = outputs
        if number < len(DENSE):
            step("Relu")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [image],
        [helper.make_tensor_value_info(top, TensorProto.FLOAT, ["batch", width])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def run_passes(source: Path, result: Path) -> None:
    from onnx_lathe.passes.core.options import configure
    from onnx_lathe.passes.core.registry import find
    from onnx_lathe.passes.core.services import Context
    from onnx_lathe.passes.graph.model import export_model, import_model
    from onnx_lathe.runtime.files import model_file

    model = model_file.load(source)
    started = last = time.perf_counter()
    busy = time.process_time()

    def lap(what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        print(f"{what:<24}{now - last:6.1f} s")
        last = now

    for name, settings in (("prune", {"sparsity": 0.9}), ("codebook", {"bits": 4})):
        graph = import_model(model)
        configure(find(name), settings).apply(graph, Context())
        lap(name)
        model = export_model(graph)
        del graph
        gc.collect()  # as the pipeline does: onnx-graphsurgeon's graphs are reference cycles
        lap("  export")
    model_file.save(model, result)
    lap(f"save {result.stat().st_size / 1e6:.0f} MB")
    print(
        f"{'together':<24}{last - started:6.1f} s, of which {time.process_time() - busy:.1f} s on the processor"
    )


if __name__ == "__main__":
    main()
