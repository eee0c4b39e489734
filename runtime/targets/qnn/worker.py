"""The process that QNN compiles and simulates in: `python -m onnx_lathe.runtime.targets.qnn.worker`, started by
process.py.

Requests come on standard input and answers go to standard output (runtime/wire.py), until the parent closes the pipe.
What the libraries say goes to standard error. One that crashes ends this process alone.
"""

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnx_lathe.runtime import wire

Arrays = dict[str, np.ndarray]


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code prints to standard output too
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends this process
    worker = None
    while (received := wire.receive(sys.stdin.buffer)) is not None:
        request, arrays = received
        try:
            if worker is None:
                sys.path[:] = request.get("path", sys.path)  # the packages that the parent found
                worker = _Worker()
            message, results = getattr(worker, f"do_{request['do']}")(request, arrays)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's own classes, and whatever a provider raises
            wire.send(answers, {"refusal": " ".join(str(error).split())})
        else:
            wire.send(answers, message, results)
    os._exit(0)  # native destructors have nothing to add but a crash


class _Worker:
    def __init__(self) -> None:
        import onnxruntime
        import onnxruntime_qnn

        self.ort, self.qnn = onnxruntime, onnxruntime_qnn
        onnxruntime.register_execution_provider_library(
            onnxruntime_qnn.get_ep_name(), onnxruntime_qnn.get_library_path()
        )
        self.session: Any = None

    def do_compile(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Writes the context file: creating the session is what compiles."""
        self._session(request, request["entries"])
        return {}, {}

    def do_open(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        self.session = self._session(request, request["entries"])
        ports = {"inputs": self.session.get_inputs(), "outputs": self.session.get_outputs()}
        return {
            role: [{"name": one.name, "shape": one.shape, "type": one.type} for one in values]
            for role, values in ports.items()
        }, {}

    def do_run(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        names = request["outputs"]
        return {}, dict(zip(names, self.session.run(names, arrays), strict=True))

    def _session(self, request: Mapping[str, Any], entries: Mapping[str, str]) -> Any:
        options = self.ort.SessionOptions()
        options.log_severity_level = 3  # its errors name the nodes that it does not take
        options.intra_op_num_threads = 1
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        devices = [one for one in self.ort.get_ep_devices() if one.ep_name == self.qnn.get_ep_name()]
        if not devices:
            raise RuntimeError("onnxruntime-qnn finds no device here, not even the simulator's")
        given = {"backend_path": self.qnn.get_qnn_htp_path(), **request["options"]}
        options.add_provider_for_devices(devices, given)
        return self.ort.InferenceSession(request["model"], options)


if __name__ == "__main__":
    main()
