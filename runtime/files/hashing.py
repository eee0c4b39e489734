"""SHA-256 of files, read in small pieces, and once for as long as a file stays what it is.

What is remembered is this process's own. A file counts as the same while its place, size and times of change are, and
only if it had been left alone for a while when it was read: file systems tell times apart by up to two seconds (FAT),
and what is written twice within one may look the same.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

LOCATION = b"\x0a\x08location"
"""What names a file of external data, as protobuf writes it."""
_PIECE_BYTES = 1 << 20
_HEAD_BYTES = 16
_SETTLED_S = 2.5
"""A file that was changed later than so long ago may change again and look the same."""
_REMEMBERED = 256


@dataclass(frozen=True)
class Content:
    """What reading a file tells: `head`, its first bytes; `locates`, whether it may name files of external data."""

    size_bytes: int
    sha256: str
    head: bytes
    locates: bool


_State = tuple[int, int, int, int, int]
_KNOWN: dict[_State, Content] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_KNOWN.clear)


def content(path: str | Path) -> Content:
    """Raises OSError for a file that cannot be read."""
    with open(path, "rb", buffering=0) as file:
        state = _state(file.fileno())
        if (known := _KNOWN.get(state)) is not None:
            return known
        quiet = settled(os.fstat(file.fileno()))
        digest, size, head, tail, locates = hashlib.sha256(), 0, b"", b"", False
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
            head = head or piece[:_HEAD_BYTES]
            locates = locates or LOCATION in piece or LOCATION in tail + piece[: len(LOCATION)]
            tail = piece[-len(LOCATION) :]
        found = Content(size, digest.hexdigest(), head, locates)
        if _state(file.fileno()) == state and quiet:
            while len(_KNOWN) >= _REMEMBERED:
                del _KNOWN[next(iter(_KNOWN))]
            _KNOWN[state] = found
    return found


def settled(found: os.stat_result) -> bool:
    """Whether another change would give the file other times. The time of writing alone can be set back by anyone;
    that of the last change of anything (ctime) is the system's. One in the future tells nothing.
    """
    return time.time() - max(found.st_mtime, found.st_ctime) > _SETTLED_S


def _state(descriptor: int) -> _State:
    """Changes when the file is written again, and is another file's for another file."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
