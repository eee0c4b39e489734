"""How each operator is split among the workers of `--parallel`: docs/parallel-rules.md, read from the rules themselves.

    python benchmarks/parallel_rules.py

A test compares the file with what this makes of the code.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.runtime.torch_bridge.registry import operators
from onnx_lathe.runtime.training.parallel.rules.table import rules

DOCUMENT = ROOT / "docs" / "parallel-rules.md"
COMMAND = "python benchmarks/parallel_rules.py"
HEAD = f"""# Which operators are split

Written by `{COMMAND}` from the code; do not edit. With `--parallel "height=2"`, `width`, `filter` or `channel` each worker of a group does
its part of the operators below, where what they read is split. Moves between the parts are exact in both directions, so that the weights after
a step are those of one process but for rounding. [parallel.md](parallel.md) has what each way costs.

| operators | what is split |
|---|---|
"""
TAIL = """
Every other operator is gathered: all workers get the whole of what it reads, and run it alike, which is always right. These are
"""


def main() -> None:
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"{DOCUMENT}: {len(rules())} operators")


def document() -> str:
    """The text of the file."""
    by_rule: dict[str, list[str]] = {}
    for name, rule in sorted(rules().items()):
        by_rule.setdefault(rule.says, []).append(f"`{name}`")
    rows = [f"| {', '.join(names)} | {says} |" for says, names in by_rule.items()]
    others = sorted({name for domain, name in operators() if not domain} - set(rules()))
    return HEAD + "\n".join(rows) + "\n" + TAIL + ", ".join(f"`{name}`" for name in others) + ".\n"


if __name__ == "__main__":
    main()
