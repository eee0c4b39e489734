"""What the network needs of a device's memory, which CPU and GPU share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEMINFO = Path("/proc/meminfo")


def notes(described: Mapping[str, Any], meminfo: Path = MEMINFO) -> str:
    """A table of all devices, and what this machine has."""
    memory = described["memory"]
    lines = [
        f"model {_mb(memory['model_bytes'])}; the builder holds its weights at least twice, as read and as built: "
        f"{_mb(2 * memory['model_bytes'])}; inputs {_mb(memory['inputs_bytes'])} at their greatest sizes",
        "",
        f"{'device':<16}{'memory':>8}{'of it the model':>17}{'scratch by default':>20}",
    ]
    for one in memory["devices"]:
        share = memory["model_bytes"] / (one["memory_gb"] * 1e9)
        lines.append(
            f"{one['name']:<16}{one['memory_gb']:>5} GB{100 * share:>15.1f} %{one['workspace_mb']:>16} MiB"
        )
    chosen = described["request"]["workspace_bytes"]
    lines += ["", f"scratch in this bundle: {'no limit but the memory' if chosen is None else _mb(chosen)}"]
    have = [f"{kind} {_mb(size)}" for kind, size in _machine(meminfo).items()]
    lines.append(f"this machine: {', '.join(have) or 'unknown'}")
    return "\n".join(lines)


def scarce(described: Mapping[str, Any], meminfo: Path = MEMINFO) -> str:
    """A warning where less is free than the builder needs at least; empty otherwise."""
    needed = 2 * described["memory"]["model_bytes"]
    free = _machine(meminfo).get("free")
    if free is None or free >= needed:
        return ""
    return f"{_mb(free)} of memory are free, and the builder needs at least {_mb(needed)}: end other programs, or add swap"


def _machine(meminfo: Path) -> dict[str, int]:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        wanted = {"in all": "MemTotal", "free": "MemAvailable"}
        return {kind: int(lines[name].split()[0]) << 10 for kind, name in wanted.items()}
    except (OSError, ValueError, KeyError, IndexError):
        return {}


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.3g} MB"
