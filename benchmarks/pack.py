"""The packed container against general compressors, and its speed and memory on a model of VGG-16's size.

    python benchmarks/pack.py [MODEL.onnx ...] [--only sizes|speed|effort]

sizes: every model packed, against zstd -19, xz -9, brotli -11 and nncodec (those that are installed) of the
.onnx file, and against the zero-order entropy of its tensors: of where a tensor has its commonest value and
of the others where that pays, of the elements otherwise. Without names it makes two INT8 models and takes
two plain ones; compressed ones are what benchmarks/deep_compression.py leaves. speed: VGG-16 with random
weights, 90 % zeros and 16 shared values per layer, as FP32 and as a codebook; each command in a fresh
process. Floors: smaller than all of them; at most 1.01 times the entropy and 200 bytes; pack 20 MB/s,
unpack 100 MB/s of FP32 weights; peak memory 2.5 times the FP32 size. effort: --effort fast against best, in processor time; floors for float
files of 0.3 to 20 MB: ten times faster, at most 3 % larger.
"""

import argparse
import filecmp
import importlib
import itertools
import lzma
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import zstandard

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

import vgg16

from onnx_lathe.optimizer.cli import main as optimize
from onnx_lathe.runtime.pack import pack, unpack
from onnx_lathe.runtime.pack.coders import elements

MODELS = ROOT / "models"
INT8 = {
    "lenet5-mnist": f"{MODELS}/mnist.npz:train",
    "resnet20-cifar10": f"{MODELS}/resnet20-cifar10/data.py:train",
}
PLAIN = (MODELS / "lenet300-mnist" / "model.onnx", MODELS / "resnet20-cifar10" / "model.onnx")
LENET5 = MODELS / "lenet5-mnist" / "model.onnx"
FP32_BYTES = 4 * 138_357_544


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--only", choices=("sizes", "speed", "effort"))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        share(*map(Path, options.worker[1:]), indices=options.worker[0] == "codebook")
        return
    with tempfile.TemporaryDirectory() as scratch:
        if options.only in (None, "effort"):
            efforts(options.models or [LENET5, *PLAIN])
        if options.only in (None, "sizes"):
            sizes(options.models or [*made(Path(scratch)), *PLAIN])
        if options.only in (None, "speed"):
            speed(Path(scratch))


def made(folder: Path) -> list[Path]:
    """The INT8 models."""
    found = []
    for name, data in INT8.items():
        arguments = [
            str(MODELS / name / "model.onnx"),
            "--passes",
            "fold,int8",
            "--calibration",
            data,
            "--preprocess",
            "scale=1/255",
        ]
        arguments = arguments if name.startswith("lenet") else arguments[:-2]
        out = folder / f"{name}-int8"
        if optimize([*arguments, "--out", str(out), "--no-latency", "--quiet"]):
            raise SystemExit(f"{name} could not be made INT8")
        found.append(out / "model.onnx")
    return found


def sizes(models: list[Path]) -> None:
    peers = {name: peer for name, peer in PEERS.items() if peer(b"test") is not None}
    print(f"| model | file | packed | seconds | unpacked in | entropy | {' | '.join(peers)} |")
    print("|" + "---|" * (6 + len(peers)))
    for path in models:
        content = path.read_bytes()
        started = time.perf_counter()
        packed = pack(content)
        middle = time.perf_counter()
        if unpack(packed) != content:
            raise SystemExit(f"{path} does not come back")
        ended = time.perf_counter()
        entropy = entropy_bytes(onnx.load_from_string(content))
        cells = [f"{path.parent.name}/{path.name}", f"{len(content):,}", f"**{len(packed):,}**"]
        cells += [f"{middle - started:.2f}", f"{ended - middle:.2f}", f"{entropy:,.0f}"]
        for peer in peers.values():
            size = peer(content)
            cells.append("-" if size is None else f"{size:,}")
        print(f"| {' | '.join(cells)} |", flush=True)


def efforts(models: list[Path]) -> None:
    print("| model | file | best | fast | larger | best takes | fast takes | faster | unpack |")
    print("|" + "---|" * 9)
    for path in models:
        content = path.read_bytes()
        packed, seconds = {}, {}
        for effort in ("best", "fast"):
            started = time.process_time()
            packed[effort] = pack(content, effort=effort)
            seconds[effort] = time.process_time() - started
        started = time.process_time()
        if unpack(packed["fast"]) != content:
            raise SystemExit(f"{path} does not come back")
        back = time.process_time() - started
        best, fast = len(packed["best"]), len(packed["fast"])
        cells = [f"{path.parent.name}/{path.name}", f"{len(content):,}", f"{best:,}", f"{fast:,}"]
        cells += [f"{100 * (fast / best - 1):.2f} %", f"{seconds['best']:.2f} s", f"{seconds['fast']:.2f} s"]
        cells += [f"{seconds['best'] / seconds['fast']:.0f} x", f"{back:.2f} s"]
        print(f"| {' | '.join(cells)} |", flush=True)


def entropy_bytes(model: onnx.ModelProto) -> float:
    """Of all initializers of 16 bytes or more, each as cheap as a zero-order code of its own may be,
    without the cost of its tables.
    """
    total = 0.0
    for tensor in model.graph.initializer:
        form = elements.form_of(tensor.data_type, tuple(tensor.dims))
        if form is None or form.size_bytes < 16:
            continue
        values = elements.read(form, np.frombuffer(onnx.numpy_helper.to_array(tensor).tobytes(), np.uint8) if not tensor.raw_data
                               else np.frombuffer(tensor.raw_data, np.uint8))  # fmt: skip
        counts = np.unique(values, return_counts=True)[1]
        share = counts / counts.sum()
        entropy = float(-(counts * np.log2(share)).sum()) / 8
        if (
            form.width > 8 and counts.size > values.size // 4
        ):  # as good as no two alike: the values themselves are data
            entropy = float(form.size_bytes)
        elif form.width > 8:
            entropy += counts.size * form.width / 8
        total += entropy
    return total


def nncodec(content: bytes) -> int | None:
    """DeepCABAC, the best of its settings, of each tensor of small integers around its commonest value; the
    other tensors, which it takes only with loss, count as they are, and the graph counts nothing.
    """
    try:
        cabac = importlib.import_module("nncodec.extensions.deepCABAC")
    except ImportError:
        return None
    if content == b"test":
        return 0
    total = 0
    for tensor in onnx.load_from_string(content).graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if (
            tensor.data_type not in (onnx.TensorProto.UINT4, onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
            or values.size < 100
        ):
            total += len(tensor.raw_data)
            continue
        found, counts = np.unique(values.astype(np.int32), return_counts=True)
        weight = np.ascontiguousarray(values.astype(np.int32) - found[counts.argmax()])
        dead = np.array([not row.any() for row in weight], np.int32)
        sizes = []
        for unary, profile, scan in itertools.product((6, 11, 16), (0, 1), (0, 1, 2)):
            encoder = cabac.Encoder()
            encoder.initCtxModels(unary, 1)
            encoder.encodeLayer(weight, 0, scan if weight.ndim > 1 else 0, profile, 0, profile, dead, cabac.HdspMode.AlwaysOff,
                                np.zeros(2, np.int8), 0, 0)  # fmt: skip
            sizes.append(len(encoder.finish().tobytes()))
        total += min(sizes)
    return total


def brotli(content: bytes) -> int | None:
    try:
        return len(importlib.import_module("brotli").compress(content, quality=11))
    except ImportError:
        return None


PEERS: dict[str, Callable[[bytes], int | None]] = {
    "zstd -19": lambda content: len(zstandard.ZstdCompressor(level=19).compress(content)),
    "xz -9": lambda content: len(lzma.compress(content, preset=9)),
    "brotli -11": brotli,
    "nncodec": nncodec,
}


def share(source: Path, result: Path, indices: bool) -> None:
    """Prunes 90 % of each big weight and lets the others share 15 values, as FP32 or as a codebook with
    4-bit indices.
    """
    model = onnx.load(source)
    for tensor in list(model.graph.initializer):
        if len(tensor.dims) < 2:
            continue
        weight = np.frombuffer(tensor.raw_data, np.float32)
        limit = np.quantile(np.abs(weight[: 1 << 20]), 0.9)
        levels = np.concatenate(
            [-limit * np.linspace(2.4, 1.1, 7), [0], limit * np.linspace(1.1, 2.6, 8)]
        ).astype(np.float32)
        index = np.searchsorted((levels[1:] + levels[:-1]) / 2, weight).astype(np.uint8)
        index[np.abs(weight) < limit] = 7
        if not indices:
            tensor.raw_data = levels[index].tobytes()
            continue
        name, dims = tensor.name, tuple(tensor.dims)
        packed = index[::2] | index[1::2] << 4 if index.size % 2 == 0 else None
        assert packed is not None
        stored = onnx.TensorProto(
            name=f"{name}_indices", data_type=onnx.TensorProto.UINT4, dims=dims, raw_data=packed.tobytes()
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(levels, f"{name}_codebook"))
        model.graph.initializer.append(stored)
        cast = onnx.helper.make_node("Cast", [stored.name], [f"{name}_wide"], to=onnx.TensorProto.INT32)
        model.graph.node.insert(
            0, onnx.helper.make_node("Gather", [f"{name}_codebook", f"{name}_wide"], [name])
        )
        model.graph.node.insert(0, cast)
    result.write_bytes(model.SerializeToString())


def speed(folder: Path) -> None:
    dense = folder / "vgg16.onnx"
    vgg16.measure([vgg16.__file__, "--worker", "make", str(dense)])
    print(
        "| VGG-16 | file | packed | pack | MB/s | peak | unpack | MB/s | peak | unpack to memory | MB/s | peak |"
    )
    print("|" + "---|" * 12)
    for form in ("fp32", "codebook"):
        model, packed, back = (folder / name for name in (f"{form}.onnx", f"{form}.lathe", "back.onnx"))
        vgg16.measure([__file__, "--worker", form, str(dense), str(model)])
        cells = []
        in_memory = [
            "-c",
            f"from onnx_lathe.runtime.pack import unpack; unpack(open({str(packed)!r}, 'rb').read())",
        ]
        commands = [
            ["-m", "onnx_lathe", "pack", str(model), "-o", str(packed)],
            ["-m", "onnx_lathe", "unpack", str(packed), "-o", str(back)],
        ]
        for command in (*commands, in_memory):
            seconds, peak = vgg16.measure(command)
            cells += [
                f"{seconds:.1f} s",
                f"{FP32_BYTES / seconds / 1e6:.0f}",
                f"{peak / 1e6:,.0f} MB, {peak / FP32_BYTES:.2f}x",
            ]
        if not filecmp.cmp(
            model, back, shallow=False
        ):  # this process stays small: a child begins with its parent's peak
            raise SystemExit(f"{form} does not come back")
        print(
            f"| {form} | {model.stat().st_size:,} | {packed.stat().st_size:,} | {' | '.join(cells)} |",
            flush=True,
        )
        model.unlink()


if __name__ == "__main__":
    main()
