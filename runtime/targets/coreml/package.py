"""The package coremltools: imported late, for it takes seconds, and quietly, for it warns of what nobody here uses."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.interruption import held

MISSING = "the package coremltools is not installed: pip install 'onnx-lathe[coreml]'"


def missing() -> str | None:
    """None if the package is there, else one line that says how to install it. Imports nothing."""
    return None if find_spec("coremltools") else MISSING


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars, and warnings of versions and of libraries that macOS alone has, off the terminal. Errors are
    raised as ever.
    """
    logger = logging.getLogger("coremltools")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@cache
def library() -> Any:
    """The module coremltools. Raises TargetError if it is not installed, or does not load."""
    if reason := missing():
        raise TargetError(reason)
    try:
        with held(), quiet():  # its own imports are in `try: ... except: pass`
            import coremltools
    except ImportError as error:
        raise TargetError(f"the package coremltools does not load: {error}") from error
    return coremltools


def builder() -> Any:
    """coremltools' MIL builder, whose methods write operations."""
    library()
    from coremltools.converters.mil import Builder

    return Builder
