"""Which TensorRT builds for which Jetson, as NVIDIA's support matrices say."""

from pathlib import Path

OLDEST = (10, 3)
FIRST_OF_JETPACK_7 = (11, 4, 1)
LAST_10_WITH_DLA = (10, 7)
SIGNS = (Path("/etc/nv_tegra_release"), Path("/proc/device-tree/model"))


def on_jetson(signs: tuple[Path, ...] = SIGNS) -> bool:
    """Whether this machine is one: its Linux has a release file, or its device tree says so."""
    try:
        return signs[0].exists() or b"jetson" in signs[1].read_bytes().lower()
    except OSError:
        return False


def refusal(version: str, core: int | None, jetson: bool) -> str:
    """Why that TensorRT is not to build here; empty if it is. `core`: of DLA, or None for the GPU."""
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if numbers[:2] < OLDEST:
        return f"TensorRT {version} is too old: the network needs 10.3 (JetPack 6.1) or later"
    unsupported = (11,) <= numbers < FIRST_OF_JETPACK_7
    if jetson and unsupported:
        return (
            f"TensorRT {version} does not support Jetson; JetPack 6 has 10.3, JetPack 7.2.2 and later 11.4.1"
        )
    if core is not None and (unsupported or LAST_10_WITH_DLA < numbers[:2] < (11,)):
        return f"TensorRT {version} does not build for DLA: 10.3 to 10.7 and 11.4.1 and later do; build with --gpu"
    return ""
