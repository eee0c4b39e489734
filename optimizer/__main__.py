"""`python -m optimizer`, the same as the command `optimize`."""

import sys

from optimizer.cli import main

sys.exit(main())
