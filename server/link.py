"""The SuperLink process: ``python -m server.link FOLDER``. Its supervisor starts it."""

import os
import sys
from pathlib import Path

from server.config import read_server
from server.flower_link import link_app
from server.listener import MERCHANT_PATHS
from server.serve import serve_both
from server.traffic import Counted, traffic_path
from silotune.logs import configure
from silotune.supervised import leave, mark_ready, open_ready, socket_path, watch_parent

__all__ = ["main"]

_PATHS = frozenset(path for _, path in MERCHANT_PATHS)


def main(folder: Path) -> None:
    """Serve merchants and the operator until told to stop."""
    watch_parent()
    configure("superlink", sees_data=False)
    settings = read_server(folder)
    socket = socket_path(folder, "superlink.sock")
    # The database has the releases that wait; SQLite would open it to the machine's other accounts.
    os.umask(0o077)
    for left in folder.glob("state.db*"):
        left.chmod(0o600)
    # Left by a process that was killed; the supervisor's lock says that none is there.
    socket.unlink(missing_ok=True)
    serve_both(
        link_app(folder / "state.db", (folder / "superexec.secret").read_bytes()),
        socket,
        host=settings.host,
        port=settings.port,
        certificate=folder / settings.certificate,
        key=folder / settings.key,
        body_limit=settings.request_bytes_max,
        counted=lambda app: Counted(app, traffic_path(folder), _PATHS),
        on_ready=lambda: mark_ready(open_ready(folder, "superlink")),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
