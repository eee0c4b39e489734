"""One run at a time in an output folder: a lock that ends with its process, however that ends."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnx_lathe.errors import UsageError

NAME = ".lathe.lock"
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class Claim:
    """The folder `out` for one run. `hear` gets a warning where the disk knows no locks."""

    def __init__(self, out: Path, hear: Callable[[str], None]) -> None:
        self.out, self.hear = out, hear
        self.held = False
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises UsageError if another run has the folder, OSError if nothing can be written there."""
        while not self.held:
            descriptor = os.open(self.out / NAME, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(descriptor)
            except OSError as error:
                os.close(descriptor)
                if error.errno in _TAKEN:
                    raise UsageError(
                        f"{self.out}: another run is writing there; wait for its end, or give another --out"
                    ) from error
                self.hear(
                    f"warning: {self.out}: the disk knows no locks ({error.strerror}); start no other run there meanwhile"
                )
                self.held = True
                return
            if self._is_there(descriptor):
                self.held, self._descriptor = True, descriptor
            else:  # the run before took it away at its end, just after it was opened here
                os.close(descriptor)

    def release(self) -> None:
        """The file goes while it is still locked: who opens it meanwhile looks again."""
        self.held = False
        if self._descriptor is not None:
            with suppress(OSError):
                (self.out / NAME).unlink(missing_ok=True)
            _unlock(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.out / NAME))
        except FileNotFoundError:
            return False


@contextmanager
def claimed(out: Path, hear: Callable[[str], None]) -> Iterator[Claim]:
    """A claim that is released when the block ends; the block takes it."""
    claim = Claim(out, hear)
    try:
        yield claim
    finally:
        claim.release()


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        with suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        """A child that a fork made has the same lock: closing alone would leave it to the child."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)
