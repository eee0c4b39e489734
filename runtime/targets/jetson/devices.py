"""The Jetsons that a bundle may be for: their memory, which CPU and GPU share, and their DLA cores.

From NVIDIA's data sheets of the modules; the scratch memory is this project's choice.
"""

from dataclasses import dataclass

SCRATCH_SHARE = 4
"""One part in so many of a device's memory is the builder's scratch, where the option workspace_mb gives none: the
rest is for the system, the weights and the application.
"""


@dataclass(frozen=True)
class Device:
    """`memory_gb`: as the module is sold; `dla`: number of cores."""

    title: str
    memory_gb: int
    dla: int

    @property
    def workspace_mb(self) -> int:
        return self.memory_gb * 1024 // SCRATCH_SHARE


DEVICES = {
    "orin-nano-4gb": Device("Jetson Orin Nano 4GB", 4, 0),
    "orin-nano-8gb": Device("Jetson Orin Nano 8GB", 8, 0),
    "orin-nx-8gb": Device("Jetson Orin NX 8GB", 8, 1),
    "orin-nx-16gb": Device("Jetson Orin NX 16GB", 16, 2),
    "agx-orin-32gb": Device("Jetson AGX Orin 32GB", 32, 2),
    "agx-orin-64gb": Device("Jetson AGX Orin 64GB", 64, 2),
    "thor-128gb": Device("Jetson AGX Thor 128GB", 128, 0),
}
