"""What ends a command on the device: one line, and an exit code."""

DONE, DEFECT, WRONG_USE, DIFFERS, FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""As Lathe's own: wrong use or damaged files, outputs that differ too much, no TensorRT or GPU or a failed build."""


class RefusedError(Exception):
    """The message is for the person at the device: what is wrong, and what to do."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code
