"""Writes files that appear whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnx_lathe.errors import LatheError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes `path`'s place when the block ends well and vanishes otherwise. Raises
    LatheError for what the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise LatheError(
                f"{path}: is a {'folder' if path.is_dir() else 'device'}, not a file; choose another name"
            )
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: OSError) -> LatheError:
    advice = {
        errno.ENOENT: "its folder does not exist; create it or choose another",
        errno.ENOTDIR: "its folder is not a folder; choose another",
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    }.get(error.errno or 0, f"{error.strerror or error}; choose another place or change its permissions")
    return LatheError(f"{path}: cannot be written: {advice}")
