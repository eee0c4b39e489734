"""Runs commands one after another in a process of its own, and says of each what it wrote: `python _alike.py FOLDER THREADS`.

Standard input has a JSON object, name -> arguments; standard output gets a line of JSON for each as it ends:
[name, exit code, {file: SHA-256}, last words].
"""

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path

UNLIKE = ("report.json", "report.html", "run.json", "layers.json")
"""Files with times in them."""


def main() -> None:
    folder, threads = Path(sys.argv[1]), sys.argv[2]
    from onnx_lathe.optimizer.cli import main as optimize

    told = sys.stdout
    for name, arguments in json.load(sys.stdin).items():
        out, said = folder / name, io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = optimize(
                [*arguments, "--threads", threads, "--no-latency", "--no-html", "--quiet", "--out", str(out)]
            )
        files = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in UNLIKE)
        hashes = {
            path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }
        print(json.dumps([name, code, hashes, said.getvalue()[-500:]]), file=told, flush=True)


if __name__ == "__main__":
    main()
