"""Stands in for runtime/targets/qnn/worker.py: dies of a crash, or sleeps, by what DYING_QNN says."""

import os
import signal
import sys
import time

from onnx_lathe.runtime import wire

if __name__ == "__main__":
    wire.receive(sys.stdin.buffer)
    if os.environ["DYING_QNN"] == "crash":
        print("free(): invalid pointer", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    time.sleep(60)
