"""How much of ONNX the PyTorch bridge runs: the cases and models that the onnx package ships, and Lathe's
own models.

    python benchmarks/bridge_coverage.py [--no-models]

Writes docs/operators.md. A case passes if shape and element type are those of the reference and every value
is within 1e-4 of the largest magnitude of the reference tensor (float16 and bfloat16: one unit in the last
place, 9.8e-4 and 7.8e-3). A float case has a tensor of float32, float64, float16 or bfloat16 among its
inputs and outputs, and none of a type that PyTorch lacks.
"""

import argparse
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.passes.loading.modern import MODERN, OLDEST
from onnx_lathe.runtime.files.reading import OPSETS
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.torch_bridge import GraphModule, unsupported
from onnx_lathe.runtime.torch_bridge.arrays import FLOATS, carried, to_numpy, to_torch
from onnx_lathe.runtime.torch_bridge.registry import NEWEST_OPSET, operators
from onnx_lathe.runtime.torch_bridge.scope import LIMITS, REASONS

DOCUMENT = ROOT / "docs" / "operators.md"
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
TOLERANCE = 1e-4
FLOOR = 0.95
FAMILIES = {
    "activation": "activations",
    "convolution": "convolution",
    "pooling": "pooling",
    "normalization": "normalization, Dropout",
    "batch_norm": "batch normalization",
    "matrix": "matrix products",
    "elementwise": "arithmetic, comparison, logic",
    "reduction": "reductions",
    "resize": "resizing",
    "sampling": "sampling",
    "shape": "moving values",
    "indexing": "indices",
    "constants": "constants and types",
    "attention": "attention",
    "recurrent": "recurrent layers",
    "loss": "losses",
    "quantization": "quantization",
}
"""File in runtime/torch_bridge/operators -> family."""
BEYOND_FLOOR = ("attention", "loss", "quantization", "recurrent")
"""Families that convolution networks, perceptrons and plain vision transformers do without."""
DIFFERENT = {
    **dict.fromkeys(
        (
            "test_resize_downsample_scales_cubic_align_corners",
            "test_resize_downsample_scales_linear_align_corners",
        ),
        "the reference divides by scale x length - 1; here, as in ONNX Runtime, by the real length of the output - 1",
    ),
    **dict.fromkeys(
        ("test_attention_4d_causal_padded_kv_bf16", "test_attention_4d_padded_kv_bf16"),
        "bfloat16: the reference rounds oftener, and is further from the result in float64",
    ),
    "test_averagepool_2d_ceil_last_window_starts_on_pad": "the reference is written down with four digits",
}
"""Case -> why its result differs from the reference."""


class Result(NamedTuple):
    case: str
    op: str
    family: str
    """Empty for an operator that the bridge leaves out."""
    is_float: bool
    refused: str
    wrong: str
    """How the result differs; empty for a case that passes or is refused."""

    @property
    def passed(self) -> bool:
        return not self.refused and not self.wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--no-models", action="store_true", help="leave the models' part of the document as it is"
    )
    options = parser.parse_args()
    results = node_cases()
    before = DOCUMENT.read_text(encoding="utf-8").partition("## Models")[2] if DOCUMENT.exists() else ""
    models = f"## Models{before}" if options.no_models else model_part()
    DOCUMENT.write_text(operator_part(results) + models, encoding="utf-8")
    print(
        f"{DOCUMENT.relative_to(ROOT)}: {share(under_floor(results))} float cases of the families that the floor covers pass"
    )


def under_floor(results: Iterable[Result]) -> list[Result]:
    """The float cases of the families that the floor covers."""
    return [
        result
        for result in results
        if result.is_float and result.family and result.family not in BEYOND_FLOOR
    ]


def share(results: Sequence[Result]) -> str:
    passed = sum(result.passed for result in results)
    return f"{passed} of {len(results)}" if results else "-"


@cache
def collected() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference divides by zero on purpose
        return sorted(collect_testcases(None), key=lambda case: case.name)


@cache
def node_cases(expanded: bool = False) -> list[Result]:
    """Every single-operator case of the onnx package; or those in which an operator is written as a graph
    of others ("expanded").
    """
    return [measure(case) for case in collected() if ("_expanded" in case.name) == expanded]


def measure(case: Any) -> Result:
    node = case.model.graph.node[0]
    builders = operators().get(("" if node.domain == "ai.onnx" else node.domain, node.op_type), {})
    family = next((operator.build.__module__.rpartition(".")[2] for operator in builders.values()), "")
    tensors = [value for inputs, outputs in case.data_sets for value in (*inputs, *outputs)]
    refused = ", ".join(dict.fromkeys(str(item.op) for item in unsupported(case.model)))
    wrong = (
        ""
        if refused
        else next(filter(None, (compare(case.model, *map(arrays, pair)) for pair in case.data_sets)), "")
    )
    return Result(case.name, node.op_type, family, is_float(tensors), refused, wrong)


def is_float(tensors: Iterable[Any]) -> bool:
    types = {element_type(tensor) for tensor in tensors}
    return not types.isdisjoint(FLOATS) and all(carried(element) for element in types)


def element_type(tensor: Any) -> int:
    """ONNX element type; UNDEFINED for what is no tensor."""
    if isinstance(tensor, TensorProto):
        return tensor.data_type
    if not isinstance(tensor, (np.ndarray, np.generic)) or tensor.dtype == object:
        return TensorProto.UNDEFINED
    return onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype)


def arrays(values: Iterable[Any]) -> list[np.ndarray]:
    return [
        numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
        for value in values
    ]


def compare(model: onnx.ModelProto, inputs: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> str:
    """How the bridge's outputs differ from the wanted ones; empty if they do not."""
    with torch.no_grad():
        results = GraphModule(model)(*map(to_torch, inputs))
    results = results if isinstance(results, tuple) else (results,)
    return next(
        filter(None, (difference(result, want) for result, want in zip(results, wanted, strict=True))), ""
    )


def difference(result: torch.Tensor, want: np.ndarray) -> str:
    if tuple(result.shape) != want.shape:
        return f"shape {list(result.shape)}, wanted is {list(want.shape)}"
    if result.dtype != to_torch(want.reshape(-1)[:0]).dtype:
        return f"type {result.dtype}, wanted is {want.dtype}"
    if onnx.helper.np_dtype_to_tensor_dtype(want.dtype) not in FLOATS:
        return "" if np.array_equal(to_numpy(result, want.dtype), want) else "other values"
    got, target = result.double().numpy(), want.astype(np.float64)
    finite = np.isfinite(target)
    if not np.array_equal(got[~finite], target[~finite], equal_nan=True):
        return "other infinities or NaNs"
    error = np.abs(got[finite] - target[finite]).max(initial=0) / max(
        np.abs(target[finite]).max(initial=0), 1e-3
    )
    allowed = (
        max(TOLERANCE, torch.finfo(result.dtype).eps)
        if result.dtype in (torch.float16, torch.bfloat16)
        else TOLERANCE
    )
    return "" if error <= allowed else f"relative error {error:.1e}"


def operator_part(results: Sequence[Result]) -> str:
    """The document down to its part on models."""
    by_op: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_op[result.op].append(result)
    outside = sum(result.is_float and not result.family for result in results)
    lines = [
        "# Operators that can be retrained",
        "",
        "What the bridge from ONNX to PyTorch runs, measured. Every other node is named before anything runs. It knows the operators up to",
        f"opset {NEWEST_OPSET}; `optimize` itself loads models of opset {OLDEST} to {OPSETS[1]}, and makes opset {MODERN} of those below {OPSETS[0]}. Written by",
        "`python benchmarks/bridge_coverage.py`, which says what counts as passed; do not edit.",
        "",
        f"Of the single-operator cases of onnx {onnx.__version__}, {share(under_floor(results))} float cases pass in the families that",
        f"convolution networks, perceptrons and plain vision transformers use (floor: {FLOOR:.0%}). Attention, recurrent layers, losses and quantization are",
        f"measured below, but not counted there; neither are the {outside} float cases of the operators that are left out, all refused.",
        "The other cases use integers, booleans, strings, or floats of 8 and fewer bits. Of the cases in which onnx writes an operator as",
        f"a graph of others, {share(node_cases(expanded=True))} pass, and the rest are refused.",
        "",
        *table("family|operators|float cases that pass|cases of other types", family_rows(by_op)),
        "",
        *operator_tables(by_op),
        "## Left out",
        "",
        *table("why|operators", left_out_rows()),
        "",
        "## Cases that do not pass",
        "",
        "Of operators that the tables above list.",
        "",
        *table("case|why", failure_rows(results)),
        "",
        "",
    ]
    return "\n".join(lines)


def table(header: str, rows: Iterable[Sequence[object]]) -> list[str]:
    titles = header.split("|")
    return [
        f"| {' | '.join(titles)} |",
        "|" + "---|" * len(titles),
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]


def members() -> dict[str, list[str]]:
    """Operators of each family."""
    found: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for (_, name), builders in sorted(operators().items()):
        found[next(iter(builders.values())).build.__module__.rpartition(".")[2]].append(name)
    return found


def family_rows(by_op: dict[str, list[Result]]) -> Iterator[Sequence[object]]:
    for family, names in members().items():
        results = [result for name in names for result in by_op[name]]
        counts = [
            share([result for result in results if result.is_float == is_float]) for is_float in (True, False)
        ]
        yield FAMILIES[family], len(names), *counts


def operator_tables(by_op: dict[str, list[Result]]) -> Iterator[str]:
    for family, names in members().items():
        yield f"## {FAMILIES[family][0].upper()}{FAMILIES[family][1:]}"
        yield ""
        rows = [
            (
                name,
                versions(name),
                *(share([r for r in by_op[name] if r.is_float == kind]) for kind in (True, False)),
                LIMITS.get(name, ""),
            )
            for name in names
        ]
        yield from table("operator|versions (opset)|float cases|other cases|refused", rows)
        yield ""


def versions(name: str) -> str:
    """The operator's versions in the standard that the bridge runs."""
    first = min(operators()["", name])
    every = {
        schema.since_version: schema
        for schema in onnx.defs.get_all_schemas_with_history()
        if (schema.domain, schema.name) == ("", name)
    }
    known = [since for since in sorted(every) if since <= NEWEST_OPSET and not every[since].deprecated]
    return ", ".join(str(since) for since in known if since >= first)


def left_out_rows() -> Iterator[Sequence[object]]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in REASONS.items():
        names[reason].append(name)
    return ((reason, ", ".join(sorted(group))) for reason, group in names.items())


def failure_rows(results: Sequence[Result]) -> Iterator[Sequence[object]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for result in results:
        if result.family and not result.passed:
            groups[
                f"refused: {result.refused}" if result.refused else DIFFERENT.get(result.case, result.wrong)
            ].append(result.case)
    return ((", ".join(cases), why) for why, cases in sorted(groups.items()))


def model_part() -> str:
    rows = [stored(folder) for folder in ("pytorch-converted", "pytorch-operator", "simple")]
    rows += [against_runtime(path, random_weights(path)) for path in sorted((DATA / "light").glob("*.onnx"))]
    rows += [
        against_runtime(path, onnx.load(path)) for path in sorted((ROOT / "models").glob("*/model.onnx"))
    ]
    lines = [
        "## Models",
        "",
        "Of the onnx package against their stored outputs; the `light_*` models, whose weights are constants, with random weights,",
        "and Lathe's own models against ONNX Runtime, on random input.",
        "",
        *table("models|pass|not", rows),
    ]
    return "\n".join(lines) + "\n"


def stored(folder: str) -> tuple[str, str, str]:
    """Models with stored inputs and outputs."""
    paths, failed = sorted((DATA / folder).glob("*/model.onnx")), []
    for path in paths:
        model = onnx.load(path)
        refused = sorted({item.op for item in unsupported(model)})
        if refused:
            failed.append(f"{path.parent.name.removeprefix('test_')} ({', '.join(refused)})")
            continue
        wrong = compare(
            model, *(read_tensors(path.parent / "test_data_set_0", kind) for kind in ("input", "output"))
        )
        if wrong:
            failed.append(f"{path.parent.name} ({wrong})")
    return folder, f"{len(paths) - len(failed)} of {len(paths)}", ", ".join(failed)


def read_tensors(folder: Path, kind: str) -> list[np.ndarray]:
    count = len(list(folder.glob(f"{kind}_*.pb")))
    return [numpy_helper.to_array(onnx.load_tensor(folder / f"{kind}_{index}.pb")) for index in range(count)]


def random_weights(path: Path) -> onnx.ModelProto:
    """The model with random weights, scaled by how many values each sum has, for those that it computes as
    constants of a shape.
    """
    model, generator = onnx.load(path), np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        shape = shapes[node.input[0]]
        weight = generator.standard_normal(shape, np.float32) * np.float32(
            np.sqrt(2 / max(np.prod(shape[1:]), 1))
        )
        model.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        model.graph.node.remove(node)
    return model


def against_runtime(path: Path, model: onnx.ModelProto) -> tuple[str, str, str]:
    """One model against ONNX Runtime."""
    name = path.parent.name if path.stem == "model" else path.stem
    initializers = {tensor.name for tensor in model.graph.initializer}
    generator = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        if value.name not in initializers:
            shape = [size.dim_value or 2 for size in value.type.tensor_type.shape.dim]
            feeds[value.name] = generator.standard_normal(shape, np.float32)
    wanted = ort.run(ort.session(model, threads=1), feeds)
    wrong = compare(model, list(feeds.values()), list(wanted.values()))
    return name, "0 of 1" if wrong else "1 of 1", wrong


if __name__ == "__main__":
    main()
