"""Loads a user's retraining hook, `file.py:function`, and turns what it raises into one line."""

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnx_lathe.errors import LatheError, PassError, UsageError, nearest
from onnx_lathe.runtime.user_code import import_file, shadowed


def hook_place(spec: str) -> tuple[Path, str]:
    """(file, function) of `file.py:function`. Raises UsageError if it is not of that form or the file is
    not there.
    """
    file, colon, function = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise UsageError(f"retraining hook '{spec}': give it as file.py:function")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"retraining hook '{spec}': there is no file {path}")
    return path.resolve(), function


def load_hook(spec: str, log: Path | None = None) -> Callable[..., Any]:
    """The function. Its folder becomes importable, as for a script.

    Raises UsageError if the file has no such function of two arguments, PassError for whatever importing the file raises;
    `log` gets the traceback.
    """
    path, name = hook_place(spec)
    with guarded(f"retraining hook '{spec}' cannot be imported", log, path.parent):
        module = import_file(path, anew=True)  # each training begins with what the file says
    functions = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    if not hasattr(module, name):
        known = f"; it has {', '.join(functions)}" if functions else ""
        raise UsageError(
            f"retraining hook '{spec}': the file has no function '{name}'{nearest(name, functions)}{known}"
        )
    hook: Any = getattr(module, name)
    if not callable(hook):
        raise UsageError(f"retraining hook '{spec}': '{name}' is a {type(hook).__name__}, not a function")
    if not _takes_two(hook):
        raise UsageError(
            f"retraining hook '{spec}': '{name}' is called with (module, job), and takes other arguments"
        )
    return hook


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether it can be called with two arguments; of a function that is not Python's nobody knows."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


@contextmanager
def guarded(what: str, log: Path | None, folder: Path | None = None) -> Iterator[None]:
    """User code runs inside: what it raises becomes a PassError of one line, and `log` gets the traceback.

    `folder`: where the code lies, for the message if an import there finds another module.
    """
    try:
        yield
    except LatheError:
        raise
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split()) or "no message"
        if folder is not None:
            message += shadowed(error, folder)
        see = ""
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            see = f"; the traceback is in {log}"
        raise PassError(f"{what}: {type(error).__name__}: {message}{see}") from error
