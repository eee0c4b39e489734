"""Qualcomm's chips whose neural processor (HTP) models are compiled for.

The compiler takes any number for any chip, and follows `soc_model` where the architecture contradicts it: a wrong row
here would be a file that no phone loads.

Sources, all three by Qualcomm:
ort       onnxruntime-qnn, the table of chips of the provider that does the work here
executorch  pytorch/executorch, backends/qualcomm/serialization/qc_schema.py, which also says the size of the VTCM
litert    google-ai-edge/LiteRT, litert/vendors/qualcomm/core/schema/soc_table.cc, the same
Tried with QNN 2.51: each row compiled a ResNet-20 in INT8, and a small network in float, which some chips have no kernels
for (`half`). The numbers of SM8650, SM8750 and SM8850 were the first found to work, by experiment. None was run on a chip.
"""

import difflib
from dataclasses import dataclass

from onnx_lathe.errors import UsageError

JOINT = "+"
"""Between chips that one file is for."""


@dataclass(frozen=True)
class Chip:
    name: str
    product: str
    soc_model: int
    htp_arch: int
    vtcm_mb: int
    """Memory beside the processor, MiB; 0 if no source says it."""
    half: bool
    """Whether it computes in float16."""
    sources: tuple[str, ...]


ORT, EXECUTORCH, LITERT = "ort", "executorch", "litert"

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("SM8850", "Snapdragon 8 Elite Gen 5", 87, 81, 8, True, (ORT, EXECUTORCH, LITERT)),
        Chip("SM8845", "Snapdragon 8 Gen 5", 97, 81, 8, True, (EXECUTORCH,)),
        Chip("SM8750", "Snapdragon 8 Elite", 69, 79, 8, True, (ORT, EXECUTORCH, LITERT)),
        Chip("SM8650", "Snapdragon 8 Gen 3", 57, 75, 8, True, (ORT, EXECUTORCH, LITERT)),
        Chip("SM8635", "Snapdragon 8s Gen 3", 68, 73, 0, False, (ORT,)),
        Chip("SM8550", "Snapdragon 8 Gen 2", 43, 73, 8, True, (ORT, EXECUTORCH, LITERT)),
        Chip("SM8475", "Snapdragon 8+ Gen 1", 42, 69, 8, True, (ORT, EXECUTORCH, LITERT)),
        Chip("SM8450", "Snapdragon 8 Gen 1", 36, 69, 8, True, (ORT, EXECUTORCH, LITERT)),
        Chip("SM8350", "Snapdragon 888", 30, 68, 4, True, (ORT, EXECUTORCH, LITERT)),
        Chip("SM7675", "Snapdragon 7+ Gen 3", 70, 73, 0, False, (ORT,)),
        Chip("SC8480XP", "Snapdragon X2 Elite", 88, 81, 0, True, (ORT,)),
        Chip("SC8380XP", "Snapdragon X Elite", 60, 73, 8, True, (ORT, LITERT)),
        Chip("SC8280X", "Snapdragon 8cx Gen 3", 37, 68, 0, False, (ORT,)),
        Chip("SXR2330P", "Snapdragon XR, for headsets", 75, 79, 8, True, (EXECUTORCH, LITERT)),
        Chip("SXR2230P", "Snapdragon XR2 Gen 2", 53, 69, 8, True, (EXECUTORCH, LITERT)),
        Chip("SSG2125P", "Snapdragon AR, for glasses", 58, 73, 2, False, (EXECUTORCH, LITERT)),
        Chip("SSG2115P", "Snapdragon AR2 Gen 1", 46, 73, 2, False, (EXECUTORCH,)),
        Chip("SAR2230P", "Snapdragon AR, for glasses", 95, 81, 4, False, (EXECUTORCH, LITERT)),
        Chip("SW6100", "Snapdragon W, for watches", 96, 81, 4, False, (EXECUTORCH, LITERT)),
        Chip("QCM6490", "QCM6490, for devices", 93, 68, 2, False, (EXECUTORCH,)),
        Chip("QCS9100", "QCS9100, for devices", 77, 73, 8, True, (EXECUTORCH, LITERT)),
        Chip("QCS8300", "QCS8300, for devices", 82, 75, 8, True, (LITERT,)),
        Chip("SA8255", "SA8255, for cars", 52, 73, 8, True, (EXECUTORCH, LITERT)),
        Chip("SA8295", "SA8295, for cars", 39, 68, 8, True, (EXECUTORCH, LITERT)),
    )
}


def chips_of(text: str) -> list[Chip]:
    """The chips that the option soc names, `SM8650` or `SM8650+SM8750`. Raises UsageError."""
    names = [name.strip().upper() for name in str(text).split(JOINT)]
    for name in names:
        if name not in CHIPS:
            raise UsageError(
                f"option soc: there is no chip '{name}'{_nearest(name)}; known are {', '.join(CHIPS)}"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"option soc names a chip twice: '{text}'")
    return [CHIPS[name] for name in names]


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, CHIPS, n=1)
    return f"; did you mean {close[0]}?" if close else ""
