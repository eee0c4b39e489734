"""Which operators of ONNX the target litert writes, and what it refuses of them: docs/litert-operators.md, read from the
writers themselves, with the single-operator cases of the onnx package run through LiteRT's interpreter.

    python benchmarks/litert_operators.py

A case passes if every output is what the package stores, or where ONNX Runtime computes another, what that computes:
floats within 1e-4 of the largest value, all else equal, with XNNPACK and with the reference kernels. A test compares the
file with what this makes of the code.
"""

import ast
import importlib
import pkgutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.errors import LatheError
from onnx_lathe.runtime.files.reading import OPSETS
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.litert import operators as families
from onnx_lathe.runtime.targets.litert.convert import Conversion
from onnx_lathe.runtime.targets.litert.registry import find, operators
from tests.support.litert_operators import compare, converted, kernels_for, packed, run

DOCUMENT = ROOT / "docs" / "litert-operators.md"
COMMAND = "python benchmarks/litert_operators.py"
TOLERANCE = 1e-4
PASSES, REFUSED, OTHER_TYPE = "passes", "refused", "of another type"
TYPES = (
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
Arrays = Mapping[str, np.ndarray]


class Result(NamedTuple):
    """Of one case. `outcome`: PASSES, REFUSED, OTHER_TYPE, or what is wrong."""

    name: str
    op: str
    outcome: str
    reason: str = ""


def main() -> None:
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"{DOCUMENT}: {len(operators())} operators")
    for one in results():
        if one.outcome not in (PASSES, REFUSED, OTHER_TYPE):
            print(f"{one.name}: {one.outcome}")


def document() -> str:
    """The text of the file."""
    by_family: dict[str, list[str]] = {}
    for (domain, name), entry in operators().items():
        by_family.setdefault(entry.build.__module__, []).append(f"{domain}.{name}" if domain else name)
    parts = [_head()]
    for found in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"{families.__name__}.{found.name}")
        parts.append(_family(found.name, module, sorted(by_family.get(module.__name__, []))))
    return "\n".join([*parts, _others()])


def _head() -> str:
    counts = Counter(one.outcome for one in results())
    other = counts[OTHER_TYPE]
    counted = len(results()) - other
    return f"""# Operators of the target litert

Written by `{COMMAND}` from the code. `optimize check MODEL --target litert` says of a model which of its nodes are refused, and why.

Of the {counted} single-operator cases of onnx {onnx.__version__} for these operators, {counts[PASSES]} pass and {counts[REFUSED]} are refused; none gives
another result. {other} more have types that a file of LiteRT does not compute with (floats of 16 and fewer bits, integers of 4 and
fewer, strings, sequences).

Nodes that depend on no input are computed when the file is written. Those that depend on the sizes of inputs alone are, too, if these
are fixed; where they stay open, they are written as operators. Between QuantizeLinear and DequantizeLinear an operator computes on
integers where the table of its family says so, else in float between a DEQUANTIZE and a QUANTIZE.
"""


def _family(name: str, module: ModuleType, names: list[str]) -> str:
    about = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    lines = [
        f"## {name.capitalize()}",
        "",
        about,
        "",
        "| operator | on integers | cases that pass |",
        "|---|---|---|",
    ]
    for one in names:
        entry = operators()["", one]
        cases = [found for found in results() if found.op == one and found.outcome != OTHER_TYPE]
        passed = sum(found.outcome == PASSES for found in cases)
        count = f"{passed} of {len(cases)}" if cases else "-"
        lines.append(f"| `{one}` | {', '.join(entry.integers) or '-'} | {count} |")
    if reasons := list(dict.fromkeys(_reasons(module))):
        lines += ["", "Refused where", "", *(f"- {reason}" for reason in reasons)]
    return "\n".join([*lines, ""])


def _reasons(module: ModuleType) -> Iterator[str]:
    """The texts of Unsupported, in the order of the file; … stands for what differs from node to node."""
    tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
            continue
        text = _text(node.args[0])
        if node.func.id == "Unsupported" and text.strip("… "):
            yield text


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(one) for one in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


def _others() -> str:
    """Of the standard, up to the newest opset that Lathe reads; what has no inputs is a constant."""
    known = {name for domain, name in operators() if not domain}
    standard = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if not schema.domain and not schema.deprecated and schema.since_version <= OPSETS[1] and schema.inputs
    }
    missing = ", ".join(f"`{name}`" for name in sorted(standard - known))
    return (
        f"## Not written\n\nAnything else of the standard domain, where it depends on an input: {missing}\n"
        "\nAn `If` becomes the body that runs where the sizes of inputs decide it. One that values decide is refused, though both bodies could be\n"
        "computed and one picked (SELECT_V2): export the model with `torch.where` in its place.\n"
    )


@cache
def results() -> list[Result]:
    """Of every case of the onnx package whose operator is written, in the order of their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference divides by zero on purpose
        cases = sorted(collect_testcases(None), key=lambda case: case.name)
    return [
        measure(case)
        for case in cases
        if "_expanded" not in case.name and find("", case.model.graph.node[0].op_type) is not None
    ]


def measure(case: Any) -> Result:
    op = case.model.graph.node[0].op_type
    values = [*case.data_sets[0][0], *case.data_sets[0][1]]
    if not all(isinstance(one, np.ndarray | np.generic | onnx.TensorProto) for one in values):
        return Result(case.name, op, OTHER_TYPE)
    inputs, wanted = (
        {value.name: _array(one) for value, one in zip(names, given, strict=False)}
        for names, given in zip(
            (case.model.graph.input, case.model.graph.output), case.data_sets[0], strict=True
        )
    )
    if any(one.dtype.name not in TYPES for one in (*inputs.values(), *wanted.values())):
        return Result(case.name, op, OTHER_TYPE)
    return Result(case.name, op, *_outcome(case.model, inputs, wanted))


def _array(value: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _outcome(model: onnx.ModelProto, inputs: Arrays, wanted: Arrays) -> tuple[str, str]:
    """With all inputs fed, or if that is refused, with the first one alone, and the others as constants."""
    reason = ""
    for count in dict.fromkeys((len(inputs), 1)):
        fed, stored = _with_constants(model, inputs, count)
        try:
            found = converted(stored, {name: value.shape for name, value in fed.items()})
        except LatheError as error:
            reason = str(error)
            continue
        if not found.refused:
            return _compared(model, found, inputs, fed, wanted), ""
        reason = "; ".join(dict.fromkeys(one for _, _, one in found.refused))
    return REFUSED, reason


def _with_constants(model: onnx.ModelProto, inputs: Arrays, count: int) -> tuple[Arrays, onnx.ModelProto]:
    """(the first `count` inputs, the model with the others as initializers)."""
    kept = list(inputs)[:count]
    found = onnx.ModelProto()
    found.CopyFrom(model)
    found.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in inputs.items() if name not in kept
    )
    values = [value for value in found.graph.input if value.name in kept]
    del found.graph.input[:]
    found.graph.input.extend(values)
    return {name: inputs[name] for name in kept}, found


def _compared(model: onnx.ModelProto, found: Conversion, inputs: Arrays, fed: Arrays, wanted: Arrays) -> str:
    blob = packed(found)
    for kernels in kernels_for(one.code for one in found.network.operators):
        try:
            got = run(blob, fed, kernels)
            try:
                compare(got, wanted, TOLERANCE, kernels)
            except AssertionError:
                compare(got, ort.run(ort.session(model, optimized=False), inputs), TOLERANCE, kernels)
        except (AssertionError, LatheError, RuntimeError, ValueError) as error:
            return " ".join(str(error).split())[:200] or "another result"
    return PASSES


if __name__ == "__main__":
    main()
