"""Nothing is asked of the network by importing Lathe, or by compiling a model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support.house import ROOT

WATCH = """
import os, sys

def watch(event, arguments):
    if event not in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], (str, bytes)):
        return  # a file of this machine
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{event} {arguments[1:]} by {sys.argv[:2]}\\n")
    raise PermissionError("this test forbids the network")

sys.addaudithook(watch)
with open(os.environ["NETWORK_LOG"] + ".watched", "a") as log:
    log.write("1\\n")
"""
"""Of every Python that is started below the test, children too; the interpreter itself calls it, whoever opens sockets."""
IMPORT = "import onnx_lathe, onnx_lathe.optimizer.cli; onnx_lathe.passes(); print(onnx_lathe.__file__)"


def watched(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """The process of `python ARGUMENTS`, and what it asked of the network. Where it may, Linux takes the network away too,
    from libraries that are not Python.
    """
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    log = folder / "network"
    log.write_text("", encoding="utf-8")
    places = os.pathsep.join([str(folder / "watch"), str(ROOT)])
    environment = os.environ | {"NETWORK_LOG": str(log), "PYTHONPATH": places}
    unshare = ["unshare", "--map-root-user", "--net"]
    apart = unshare if sys.platform == "linux" and works(*unshare, "true") else []
    done = subprocess.run(
        [*apart, sys.executable, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (folder / "network.watched").exists(), "nothing watched the process"
    return done, log.read_text(encoding="utf-8")


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)",
        "import urllib.request; urllib.request.urlopen('http://localhost:9/')",
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import socket; socket.gethostbyname(\"localhost\")']))",
    ],
)
def test_a_question_to_the_network_is_seen(code: str, tmp_path: Path) -> None:
    done, asked = watched(tmp_path, "-c", code)
    assert done.returncode
    assert "forbids the network" in done.stderr
    assert asked.startswith("socket.")


def test_an_import_asks_nothing(tmp_path: Path) -> None:
    done, asked = watched(tmp_path, "-c", IMPORT)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "onnx_lathe" / "__init__.py"
    assert asked == ""


def test_compiling_asks_nothing(lenet5: Path, small_mnist: Path, tmp_path: Path) -> None:
    passes = "fold, prune(sparsity=0.5), codebook(bits=4), int8"
    request = [
        "--data",
        f"{small_mnist}:test",
        "--preprocess",
        "scale=1/255",
        "--target",
        "onnx,ort,pack",
        "--no-latency",
    ]
    done, asked = watched(
        tmp_path, "-m", "onnx_lathe", str(lenet5), "--passes", passes, *request, "--out", "built"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert asked == ""
    made = {path.name for path in (tmp_path / "built").iterdir()}
    assert {"model.onnx", "report.json", "report.html"} <= made
    weights = [
        onnx.numpy_helper.to_array(one)
        for one in onnx.load(tmp_path / "built" / "model.onnx").graph.initializer
    ]
    assert any(weight.dtype == np.int8 for weight in weights)
