"""The errors that a user can mend, all of one root, and the hint at the name that was meant."""

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends, and what a run record says in `exit_code`."""

    DONE = 0
    """The request is done, and every gate passed."""
    DEFECT = 1
    """A defect of Lathe."""
    WRONG_USE = 2
    """A wrong option, or input that cannot be read."""
    GATE_FAILED = 3
    TARGET_FAILED = 4
    """A target is not available here, or its build failed."""
    INTERRUPTED = 130

    @property
    def outcome(self) -> str:
        """The word that a run record gives for it: "gate failed"."""
        return self.name.lower().replace("_", " ")


class LatheError(Exception):
    """Root of every error that a user can mend. The message is one line: the file, node or option, and what
    to do.
    """

    exit_code = ExitCode.WRONG_USE


class UsageError(LatheError):
    """Wrong option, recipe or combination of them."""


class ModelError(LatheError):
    """A model file that cannot be read, is invalid, or needs what is not supported."""


class CrashError(ModelError):
    """A model that ends the process in which ONNX Runtime loads it."""


class DataError(LatheError):
    """Data that cannot be read or does not fit the model."""


class PassError(LatheError):
    """A pass that could not do its work, where skipping a node would not be an answer."""


class ContractError(LatheError):
    """A pass that broke the contract between passes: a defect of Lathe, not of the user's model."""

    exit_code = ExitCode.DEFECT


class TargetError(LatheError):
    """A target that is not available here, or whose build failed."""

    exit_code = ExitCode.TARGET_FAILED


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'prune'?" or nothing."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def first_few(names: Sequence[str], shown: int = 3) -> str:
    """The names as a message lists them: "a, b, c and 4 more"."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def printable(text: str) -> str:
    """One line that a terminal shows as it is: names in models and of files may hold anything. White space becomes a
    space, what else moves a cursor or cannot be encoded a replacement character.
    """
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in text
    )
