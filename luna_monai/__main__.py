"""Run the console script ``luna-monai`` as ``python -m luna_monai``."""

import sys

from luna_monai.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
