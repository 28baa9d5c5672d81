"""The SuperNode process: ``python -m client.node FOLDER``. Its supervisor starts it. No torch."""

import sys
from pathlib import Path

from client.config import read_client
from client.flower_node import NodeSettings, run_node
from silotune.logs import configure
from silotune.supervised import mark_ready, open_ready, socket_path, watch_parent

__all__ = ["main"]


def main(folder: Path) -> None:
    """Carry messages between the aggregator and the daemon until told to stop."""
    watch_parent()
    configure("node", sees_data=False)
    settings = read_client(folder)
    ready = open_ready(folder, "node")
    run_node(
        NodeSettings(
            address=settings.server.address,
            ca=settings.server.ca,
            certificate_sha256=settings.server.certificate_sha256,
            key=folder / "node.key",
            secret=folder / "superexec.secret",
            socket=socket_path(folder, "node.sock"),
            number=folder / "node.number",
            contact=folder / "run" / "node.contact",
            user=settings.node_user,
        ),
        on_ready=lambda: mark_ready(ready),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
