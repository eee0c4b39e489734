"""SHA-256 of files, read in small pieces, and once for as long as a file stays what it is."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

LOCATION = b"\x0a\x08location"
"""What names a file of external data, as protobuf writes it."""
_PIECE_BYTES = 1 << 20
_HEAD_BYTES = 16
_SETTLED_S = 0.1
"""A file written later than so long ago may change again without another time of change."""
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


def content(path: str | Path) -> Content:
    """Raises OSError for a file that cannot be read."""
    with open(path, "rb", buffering=0) as file:
        state = _state(file.fileno())
        if (known := _KNOWN.get(state)) is not None:
            return known
        digest, size, head, tail, locates = hashlib.sha256(), 0, b"", b"", False
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
            head = head or piece[:_HEAD_BYTES]
            locates = locates or LOCATION in piece or LOCATION in tail + piece[: len(LOCATION)]
            tail = piece[-len(LOCATION) :]
        found = Content(size, digest.hexdigest(), head, locates)
        if _state(file.fileno()) == state and time.time() - 1e-9 * state[3] > _SETTLED_S:
            while len(_KNOWN) >= _REMEMBERED:
                del _KNOWN[next(iter(_KNOWN))]
            _KNOWN[state] = found
    return found


def _state(descriptor: int) -> _State:
    """Changes when the file is written again, and is another file's for another file."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
