"""The merchant's metrics, health and dashboard: ``python -m client.observe FOLDER``. No torch."""

import sys
from pathlib import Path

from client import dashboard
from client.config import read_client
from client.metrics_export import client_metrics, client_reasons
from silotune.logs import configure
from silotune.observe import observe_app, read_token, serve
from silotune.supervised import mark_ready, open_ready, watch_parent

__all__ = ["main"]


def main(folder: Path) -> None:
    """Serve until told to stop."""
    watch_parent()
    configure("observe", sees_data=False)
    settings = read_client(folder).observe
    ready = open_ready(folder, "observe")
    app = observe_app(
        token=read_token(folder),
        host=settings.host,
        health=lambda: client_reasons(folder),
        metrics=lambda: client_metrics(folder),
        routes=dashboard.routes(folder),
    )
    serve(folder, settings, app, on_ready=lambda: mark_ready(ready))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
