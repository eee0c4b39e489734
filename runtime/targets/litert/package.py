"""The package that runs LiteRT's files, and has the schema of them."""

from typing import Any

from onnx_lathe.errors import TargetError

MISSING = "the package ai-edge-litert is not installed: pip install 'onnx-lathe[litert]'"


def interpreter_module() -> Any:
    """Module with Interpreter and OpResolverType. Raises TargetError if the package is not installed."""
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise TargetError(MISSING) from error
    return interpreter


def schema() -> Any:
    """Classes of the file's schema, made by flatbuffers. Raises TargetError if the package is not installed."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise TargetError(MISSING) from error
    return schema_py_generated


def version() -> str:
    from importlib.metadata import version as of

    return of("ai-edge-litert")
