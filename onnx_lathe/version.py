"""The version of this installation; `0+source` when it runs from a checkout without being installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("onnx-lathe")
except PackageNotFoundError:
    VERSION = "0+source"
