"""Which operators of ONNX the target ncnn writes, and what it refuses of them: docs/ncnn-operators.md, read from the
writers themselves.

    python benchmarks/ncnn_operators.py

A test compares the file with what this makes of the code.
"""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.runtime.files.reading import OPSETS
from onnx_lathe.runtime.targets.ncnn import operators as families
from onnx_lathe.runtime.targets.ncnn.registry import operators

DOCUMENT = ROOT / "docs" / "ncnn-operators.md"
COMMAND = "python benchmarks/ncnn_operators.py"
HEAD = f"""# Operators of the target ncnn

Written by `{COMMAND}` from the code. `optimize check MODEL --target ncnn` says of a model which of its nodes are refused, and why.

Nodes that depend on no input, or on the shapes of inputs alone, need no operator of ncnn: their values are computed when the network is
written. Before that the lowering has made float32 of float16 and bfloat16, taken out quantization that ncnn has no layer for, and put one body in
the place of an `If` whose condition they decide. Where sizes of the input stay open, what ncnn has to be told as a number is refused with "depends on the size of the input"; with fixed sizes it is not.
"""


def main() -> None:
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"{DOCUMENT}: {len(operators())} operators")


def document() -> str:
    """The text of the file."""
    by_family: dict[str, list[str]] = {}
    for (domain, name), builder in operators().items():
        by_family.setdefault(builder.__module__, []).append(f"{domain}.{name}" if domain else name)
    parts = [HEAD]
    for found in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"{families.__name__}.{found.name}")
        names = by_family.get(module.__name__, [])
        parts.append(_family(found.name, module, sorted(names)))
    return "\n".join([*parts, _others()])


def _family(name: str, module: ModuleType, names: list[str]) -> str:
    about = (module.__doc__ or "").split("\n\n")[0]
    lines = [
        f"## {name.capitalize()}",
        "",
        " ".join(about.split()),
        "",
        ", ".join(f"`{one}`" for one in names),
    ]
    reasons = list(dict.fromkeys(_reasons(module)))
    if reasons:
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
    )


if __name__ == "__main__":
    main()
