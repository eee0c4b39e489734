"""Lathe, an ONNX model-optimization compiler. docs/api.md shows what is here, with examples.

    import onnx_lathe

    small = onnx_lathe.rewrite(model, "fold, prune(sparsity=0.9)")            in memory
    record = onnx_lathe.optimize("model.onnx", "fold, int8", data="data.npz")  as the command does

Names are imported when they are used: this module alone loads neither ONNX Runtime nor PyTorch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_lathe.errors import (
    ContractError,
    DataError,
    ExitCode,
    LatheError,
    ModelError,
    PassError,
    TargetError,
    UsageError,
)

if TYPE_CHECKING:
    from onnx_lathe.optimizer.api import (
        build,
        check,
        from_torch,
        optimize,
        pack,
        passes,
        rewrite,
        run,
        targets,
        to_torch,
        unpack,
    )
    from onnx_lathe.optimizer.api import (
        open as open,
    )
    from onnx_lathe.optimizer.diffing.api import debug, diff
    from onnx_lathe.optimizer.inspecting.inspecting import inspect
    from onnx_lathe.optimizer.inspecting.sharing import inspect_parallel
    from onnx_lathe.optimizer.judging.calling import gate
    from onnx_lathe.optimizer.proposal import init
    from onnx_lathe.optimizer.recipe_library import recipes
    from onnx_lathe.optimizer.reporting import report
    from onnx_lathe.optimizer.search.api import auto, search, sensitivity
    from onnx_lathe.optimizer.simulating.calling import simulate
    from onnx_lathe.passes.core.base import Pass
    from onnx_lathe.passes.core.options import option
    from onnx_lathe.passes.core.registry import register
    from onnx_lathe.passes.core.report import PassReport
    from onnx_lathe.passes.core.services import Context
    from onnx_lathe.passes.core.training_options import TrainingOptions
    from onnx_lathe.passes.graph import Graph
    from onnx_lathe.version import VERSION as __version__  # noqa: N811

# In the repository `optimizer`, `passes` and `runtime` stand beside this folder; in a wheel they are inside it.
_here = Path(__file__).resolve().parent
if not (_here / "passes").is_dir():
    __path__.append(str(_here.parent))

_PLACES = {
    "optimizer.api": (
        "build", "check", "from_torch", "open", "optimize", "pack", "rewrite", "run",
        "targets", "to_torch", "unpack",
    ),
    "optimizer.judging.calling": ("gate",),
    "optimizer.inspecting.inspecting": ("inspect",),
    "optimizer.inspecting.sharing": ("inspect_parallel",),
    "optimizer.reporting": ("report",),
    "optimizer.diffing.api": ("debug", "diff"),
    "optimizer.search.api": ("auto", "search", "sensitivity"),
    "optimizer.simulating.calling": ("simulate",),
    "optimizer.proposal": ("init",),
    "optimizer.recipe_library": ("recipes",),
    "passes.core.base": ("Pass",),
    "passes.core.options": ("option",),
    "passes.core.registry": ("register",),
    "passes.core.report": ("PassReport",),
    "passes.core.services": ("Context",),
    "passes.core.training_options": ("TrainingOptions",),
    "passes.graph": ("Graph",),
}  # fmt: skip

__all__ = [
    "Context",
    "ContractError",
    "DataError",
    "ExitCode",
    "Graph",
    "LatheError",
    "ModelError",
    "Pass",
    "PassError",
    "PassReport",
    "TargetError",
    "TrainingOptions",
    "UsageError",
    "__version__",
    "auto",
    "build",
    "check",
    "debug",
    "diff",
    "from_torch",
    "gate",
    "init",
    "inspect",
    "inspect_parallel",
    "optimize",
    "option",
    "pack",
    "passes",
    "recipes",
    "register",
    "report",
    "rewrite",
    "run",
    "search",
    "sensitivity",
    "simulate",
    "targets",
    "to_torch",
    "unpack",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is asked for."""
    if name == "__version__":
        return import_module("onnx_lathe.version").VERSION
    if name == "passes":  # the package of that name, which can be called
        return import_module("onnx_lathe.passes")
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"onnx_lathe.{place}"), name)
    raise AttributeError(f"module 'onnx_lathe' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
