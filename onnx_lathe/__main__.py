"""`python -m onnx_lathe`, the same as the command `optimize`."""

import sys

from onnx_lathe.optimizer.cli import main

sys.exit(main())
