"""DLA, the accelerator beside the GPU of a Jetson AGX Orin or Orin NX: how a builder is asked for it, and a runtime.

TensorRT 10 builds for DLA in weakly typed networks alone, with the flag FP16, as its own trtexec does: a
strongly typed one refuses the flag, and DLA refuses to go without. In a weakly typed network the pairs of Q/DQ need
the flag INT8 as well, says its guide ("Working with Quantized Types"). From 11.4.1 on all networks are strongly
typed, those for DLA too.
"""

from typing import Any


def creation_flags(trt: Any, core: int | None) -> int:
    """Flags for create_network: strongly typed, but for DLA in TensorRT 10."""
    weak = core is not None and hasattr(trt.BuilderFlag, "FP16")
    return 0 if weak else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def configure(trt: Any, config: Any, core: int, quantized: bool) -> None:
    """Puts what DLA can compute on that core. The rest goes to the GPU, if GPU_FALLBACK is among the flags.
    `quantized`: whether the network has pairs of Q/DQ.
    """
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    if hasattr(trt.BuilderFlag, "FP16"):
        config.set_flag(trt.BuilderFlag.FP16)
        if quantized:
            config.set_flag(trt.BuilderFlag.INT8)


def on_gpu(network: Any, config: Any) -> list[str]:
    """Layers that the builder will not give to DLA, by its own names."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [layer.name for layer in layers if not config.can_run_on_DLA(layer)]


def load_for(runtime: Any, core: int) -> str | None:
    """Makes the runtime load engines for that core, which an engine does not say of itself. Returns why it cannot."""
    cores = runtime.num_DLA_cores
    if core < cores:
        runtime.DLA_core = core
        return None
    have = f"has {cores} DLA cores, 0 to {cores - 1}," if cores else "has no DLA"
    return f"it was built for DLA core {core}, and this machine {have} that TensorRT can use"
