"""``python -m silotune.cli``: the same as the command ``silotune``."""

import sys

from silotune.cli import main

if __name__ == "__main__":
    sys.exit(main())
