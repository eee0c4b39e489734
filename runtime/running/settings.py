"""How a session is opened, as far as it decides what ONNX Runtime makes of the model."""

from dataclasses import dataclass

import onnxruntime


@dataclass(frozen=True)
class Settings:
    """`level`: a GraphOptimizationLevel; `entries`: of the session's config; `left_out`: names of its
    transformers; `written`: ONNX Runtime writes the graph that it computes.

    The number of threads, what is logged and prepacking are no part of it: they change no graph.
    """

    level: str = "ORT_ENABLE_ALL"
    entries: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    written: bool = False

    def apply(self, options: onnxruntime.SessionOptions) -> None:
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, self.level)
        for name, value in self.entries:
            options.add_session_config_entry(name, value)


PLAIN = Settings()
"""What a user who sets nothing gets."""

FUSED = Settings(written=True)
"""Writes the graph that is computed on this processor, such as with its order of channels."""

PORTABLE = Settings("ORT_ENABLE_EXTENDED", written=True)
"""Writes the graph without what is chosen for this processor; nodes keep their names."""

MOBILE = Settings(
    entries=(("session.save_model_format", "ORT"), ("session.qdqisint8allowed", "1")),
    left_out=("NchwcTransformer",),
    written=True,
)
"""Writes an `.ort` file for phones, as onnxruntime/tools/convert_onnx_models_to_ort.py does for
`--optimization_style Fixed --target_platform arm`: fused for any processor. Channels in blocks (NCHWc), whose size
is this processor's, are left out; INT8 activations stay INT8, on whichever processor this runs.
"""

ORT_FORMAT = Settings(entries=(("session.load_model_format", "ORT"),))
"""As PLAIN, for an `.ort` file whatever its name."""


def create(
    source: bytes | str, settings: Settings, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """A CPU session of the content or the path of an ONNX file; `options` say the rest."""
    settings.apply(options)
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=[*settings.left_out]
    )
