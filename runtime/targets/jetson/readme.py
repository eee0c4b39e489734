"""The README of a bundle, for the person at the device."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_lathe.errors import first_few
from onnx_lathe.runtime.targets.jetson.shell import only_profile

LISTED = 8
"""Nodes that the README names for each reason; bundle.json has all."""


def readme(described: Mapping[str, Any]) -> str:
    """Markdown. `described`: what bundle.json says."""
    parts = (
        f"# {described['title']}",
        BUILD,
        f"## Inputs and outputs\n\n{_ports(described)}",
        f"## Compare\n\n{_reference(described['reference'])}",
        f"## Memory\n\n{_memory(described)}",
        f"## DLA\n\n{_dla(described['dla'])}",
        f"## Which TensorRT\n\n{_versions(described)}",
        f"## When it fails\n\n{FAILURES}",
    )
    return "\n\n".join(parts) + "\n"


BUILD = """An engine of TensorRT is tied to the device, its GPU and its TensorRT: build it on the Jetson that will run it. Copy the whole
folder there, then one of

    ./build.sh              with trtexec, which JetPack has in /usr/src/tensorrt/bin
    python3 build.py        with TensorRT's Python package (python3-libnvinfer) and NumPy (python3-numpy)

Both check the files by `SHA256SUMS`, ask TensorRT for the same engine, and write `model.engine`, whole or not at all. Minutes, the first time;
the device may need `sudo nvpmodel -m 0` and `sudo jetson_clocks` for its full speed.

| file | |
|---|---|
| `model.onnx` (`model.onnx.data`) | the network |
| `build.sh`, `build.py`, `parts/` | what builds, and compares |
| `bundle.json` | inputs, outputs, sizes, and what TensorRT is asked for, as data |
| `reference.npz` | stored inputs and outputs, if there are any; plain arrays, no pickle |
| `SHA256SUMS` | of all of these |"""

VERSIONS = """{table}

The scripts look at the version on the device. {precision}"""

FOR_GPU = """| on the device | TensorRT | what the scripts do |
|---|---|---|
| JetPack 6.1 and later 6.x | 10.3 | `--stronglyTyped`: types are those of the network |
| JetPack 7.x before 7.2.2 | 10.x | the same; no DLA from 10.8 on |
| - | 11.0 to 11.4.0 | refused on a Jetson: these have neither JetPack nor DLA |
| JetPack 7.2.2 and later, AGX Orin and Thor | 11.4.1 and later | always strongly typed |
| older | 8.x | refused: too old |"""

FOR_DLA = """| on the device | TensorRT | what the scripts do; with `--gpu` |
|---|---|---|
| JetPack 6.1 and later 6.x | 10.3 | {flags}: weakly typed, since DLA takes no other; `--stronglyTyped` |
| JetPack 7.x before 7.2.2 | 10.x | refused from 10.8 on, which has no DLA; `--stronglyTyped` |
| - | 11.0 to 11.4.0 | refused on a Jetson: these have neither JetPack nor DLA |
| JetPack 7.2.2 and later, AGX Orin | 11.4.1 and later | `--useDLACore={core} --allowGPUFallback`, always strongly typed; without these |
| older | 8.x | refused: too old |"""

PRECISION = """Precision is in the network: layers between quantize and dequantize run in INT8, and no
precision flag is given{but}."""

FAILURES = """Each script says in one line what is wrong, and ends with

| exit code | |
|---|---|
| 0 | done |
| 1 | a defect of the script itself; report it to Lathe with the line |
| 2 | damaged or missing files, a wrong option, a folder that cannot be written |
| 3 | `--verify`: an output differs by more than `--least-sqnr` allows |
| 4 | no TensorRT, no GPU, a version that does not do, or a failed build, with the nodes that TensorRT refuses |
| 130 | interrupted with Ctrl-C or ended by a signal; the line says what was written |

`--log` keeps all that the builder says in `model.engine.log`. "Killed", or a build that ends with SIGKILL, is memory: see above."""


def _versions(described: Mapping[str, Any]) -> str:
    core = described["request"]["dla"]
    if core is None:
        return VERSIONS.format(table=FOR_GPU, precision=PRECISION.format(but=""))
    int8 = " --int8" if described["request"]["quantized"] else ""
    flags = f"`--useDLACore={core} --allowGPUFallback --fp16{int8}`"
    table = FOR_DLA.format(flags=flags, core=core)
    return VERSIONS.format(table=table, precision=PRECISION.format(but=" but for DLA with TensorRT 10"))


def _code(text: str) -> str:
    """A name as code in a table, whatever is in it."""
    inner = _cell(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", inner)), default=0))
    room = " " if inner.startswith("`") or inner.endswith("`") or not inner.strip() else ""
    return f"{fence}{room}{inner}{room}{fence}"


def _cell(text: str) -> str:
    """On one line, and no end of the cell."""
    return re.sub(r"\s", " ", text).replace("|", r"\|")


def _ports(described: Mapping[str, Any]) -> str:
    lines = ["| | name | type | shape | sizes: least, tuned for, greatest |", "|---|---|---|---|---|"]
    profiles = only_profile(described["request"])
    for kind in ("inputs", "outputs"):
        for port in described[kind]:
            sizes = ", ".join(_by(shape) for shape in profiles.get(port["name"], ()))
            lines.append(
                f"| {kind[:-1]} | {_code(port['name'])} | {port['dtype']} | {_cell(_by(port['shape']))} | {sizes} |"
            )
    return "\n".join(lines)


def _by(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _reference(reference: Mapping[str, Any] | None) -> str:
    if reference is None:
        return "No inputs are stored in this bundle, so there is nothing to compare the engine with."
    made = (
        "**random values**, not data: the figures say whether the engine computes what the network does, not how good it is"
        if reference["made_up"]
        else "the first samples of the data that the network was compressed with"
    )
    return f"""    python3 build.py --verify

runs `model.engine` on the stored inputs ({made}) and compares with what {reference["by"]} computed of them with this very network: signal
to noise per output, in dB; the share of rows with the same largest value; and latency, median and 99th percentile, of a call with its copies, of the same as a
CUDA graph, and of the GPU alone. A GPU rounds and adds otherwise, so outputs are near, not equal; one below `--least-sqnr` (20 dB, a choice) ends it with exit code 3. Needs numpy (`python3-numpy`) and the driver, no other package."""


def _memory(described: Mapping[str, Any]) -> str:
    memory, scratch = described["memory"], described["request"]["workspace_bytes"]
    lines = [
        "| device | memory | of it the network | scratch by default | DLA cores |",
        "|---|---|---|---|---|",
    ]
    for one in memory["devices"]:
        share = memory["model_bytes"] / (one["memory_gb"] * 1e9)
        lines.append(
            f"| {one['title']} | {one['memory_gb']} GB | {100 * share:.1f} % | {one['workspace_mb']} MiB | {one['dla'] or 'none'} |"
        )
    limit = "is not limited" if scratch is None else f"is limited to {scratch >> 20} MiB"
    made = "\n".join(lines)
    return f"""CPU and GPU share a Jetson's memory. The network is {memory["model_bytes"] / 1e6:.3g} MB; the builder holds its weights at least twice, as read and as
built, and scratch memory beside them, which {limit} in this bundle. `jetson(device=NAME)` in Lathe limits it to a quarter of the device's
memory, `jetson(workspace_mb=N)` to another size. `python3 build.py --explicit` says all this for the device that it runs on.

{made}

On 4 and 8 GB: `sudo systemctl isolate multi-user.target` ends the desktop, and swap on an NVMe disk helps a build, which needs more than the engine does."""


def _dla(dla: Mapping[str, Any] | None) -> str:
    if dla is None:
        return "This bundle is for the GPU. `jetson(dla=0)` in Lathe makes one for a DLA core of an Orin NX or AGX Orin; Thor and Orin Nano have none."
    nodes: dict[str, list[str]] = {}
    for one in dla["on_gpu"]:
        nodes.setdefault(one["reason"], []).append(_code(one["node"]))
    rows = [f"| {first_few(names, LISTED)} | {_cell(reason)} |" for reason, names in nodes.items()]
    listed = "\n".join(["| nodes | why |", "|---|---|", *rows]) if rows else "None is known to."
    return f"""This bundle is for DLA core {dla["core"]}: of {dla["layers"]} nodes, DLA takes those that it can and the GPU the rest. `--gpu` builds for the GPU alone.
DLA computes in float16 and INT8 and takes one size. TensorRT 10 builds for it in a weakly typed network with float16 allowed (and INT8, for a quantized one), since it knows no other;
11.4.1 and later in a strongly typed one. No build for DLA was tried on a device: the flags are those that NVIDIA's documentation asks for. The nodes below run on the GPU, by the rules that NVIDIA publishes; the builder on the device decides, and `--log` shows what it decided:

{listed}"""
