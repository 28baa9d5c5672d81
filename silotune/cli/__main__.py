"""``python -m silotune.cli``: the same as the command ``silotune``."""

from silotune.cli import run

if __name__ == "__main__":
    run()
