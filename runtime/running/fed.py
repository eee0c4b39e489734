"""A session some of whose inputs are always fed the same: the model that a user gave, whose inputs the compiled
one has as constants. It computes the same function then, in its own way and time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_lathe.runtime.running import bfloat16


class FedSession:
    """Looks as if the model had only the other inputs. What else is asked of it, the session inside answers."""

    def __init__(self, session: Any, values: Mapping[str, np.ndarray]) -> None:
        self.session, self.values = session, dict(values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_inputs(self) -> list[Any]:
        return [value for value in self.session.get_inputs() if value.name not in self.values]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        wanted = [value.name for value in self.session.get_outputs()] if names is None else names
        return bfloat16.call(self.session, wanted, {**feeds, **self.values})


def fed(session: Any, values: Mapping[str, np.ndarray]) -> Any:
    """The session, fed with those of the values that it has inputs for."""
    here = {value.name for value in session.get_inputs()} & values.keys()
    return FedSession(session, {name: values[name] for name in here}) if here else session
