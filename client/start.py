"""The merchant's supervisor: ``python -m client.start FOLDER``. No torch, no Flower in it."""

import sys
from pathlib import Path
from typing import Any

from client.config import read_client
from silotune.logs import configure
from silotune.supervision import Process, Supervisor

__all__ = ["main"]

_PROCESSES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    # A node that waits for the answer of a daemon that is gone waits for long.
    ("node", "client.node", {"follows": "daemon"}),
    # Time to finish the release in hand: its cost is spent.
    ("daemon", "client.daemon", {"grace": 60.0}),
    ("observe", "client.observe", {}),
)
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def main(folder: Path) -> None:
    """Keep node, daemon and dashboard running until told to stop. Raises ConfigError."""
    folder = folder.resolve()
    read_client(folder)
    configure("supervisor", sees_data=False)
    environment = {**_QUIET, "FLWR_HOME": str(folder / "run" / "flwr")}
    Supervisor(
        folder,
        [
            Process(
                name=name, arguments=["-m", module, str(folder)], environment=environment, **more
            )
            for name, module, more in _PROCESSES
        ],
    ).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
