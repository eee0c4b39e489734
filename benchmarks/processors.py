"""What another processor would change: every case of the torture part `determinism` with narrower instructions, as a table.

    python benchmarks/processors.py [CASE...] [--folder DIR]

PyTorch, oneDNN, MKL and NumPy's OpenBLAS choose their kernels by the processor and can be told to take those of an older one;
ONNX Runtime cannot, so what it computes is the same in all columns here, and is not on another processor. A cell is "same", or
how many of all stored numbers differ and by how much at most, relative to the largest of their tensor.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent))

from torture_parts.determinism import cases, written

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
WAYS: Mapping[str, Mapping[str, str]] = {
    "PyTorch on AVX2": AVX2,
    "NumPy on AVX2": {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX"},
    "both on SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX",
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description="What another processor would change.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default all")
    parser.add_argument("--folder", type=Path, help="where models are kept (default: nowhere)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        every = cases(folder)
        if unknown := [name for name in given.cases if name not in every]:
            parser.error(f"there is no case '{unknown[0]}'; there are {', '.join(every)}")
        wanted = {name: every[name] for name in given.cases or every if not name.startswith("target-")}
        ways = {"first": {}, **WAYS}
        running = {
            way: written(wanted, folder / way.replace(" ", "-"), 1, {"PYTHONHASHSEED": "0", **extra})
            for way, extra in ways.items()
        }
        print("| case | " + " | ".join(WAYS) + " |\n|---" + "|---" * len(WAYS) + "|")
        for name in wanted:
            codes = {way: next(each)[0] for way, each in running.items()}
            cells = [
                compared(folder / "first" / name, folder / way.replace(" ", "-") / name)
                if codes[way] == codes["first"]
                else f"exit code {codes[way]} for {codes['first']}"
                for way in WAYS
            ]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


def compared(first: Path, other: Path) -> str:
    """The last checkpoints of two runs."""
    paths = [sorted((folder / "steps").glob("*.onnx"))[-1] for folder in (first, other)]
    if paths[0].read_bytes() == paths[1].read_bytes():
        return "same"
    tensors = [
        {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
        for path in paths
    ]
    if {name: one.shape for name, one in tensors[0].items()} != {
        name: one.shape for name, one in tensors[1].items()
    }:
        return "another graph"
    count = differing = 0
    most = 0.0
    for name, array in tensors[0].items():
        ours, theirs = array.astype(np.float64), tensors[1][name].astype(np.float64)
        count += array.size
        differing += int((ours != theirs).sum())
        scale = max(float(np.abs(ours).max(initial=0.0)), 1e-30)
        most = max(most, float(np.abs(ours - theirs).max(initial=0.0)) / scale)
    return f"{differing / count:.2%} by up to {most:.1e}" if differing else "same numbers"


if __name__ == "__main__":
    sys.exit(main())
