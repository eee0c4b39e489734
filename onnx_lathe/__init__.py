"""Lathe, an ONNX model-optimization compiler. docs/api.md shows what is here, with examples."""

from pathlib import Path

# In the repository `optimizer`, `passes` and `runtime` stand beside this folder; in a wheel they are inside
# it.
_here = Path(__file__).resolve().parent
if not (_here / "passes").is_dir():
    __path__.append(str(_here.parent))
