"""The aggregator's metrics, health and dashboard: ``python -m server.observe FOLDER``. No torch."""

import sys
from pathlib import Path

from server import dashboard
from server.config import read_server
from server.metrics_export import server_metrics, server_reasons
from silotune.logs import configure
from silotune.observe import observe_app, read_token, serve
from silotune.supervised import mark_ready, open_ready, watch_parent

__all__ = ["main"]


def main(folder: Path) -> None:
    """Serve until told to stop."""
    watch_parent()
    configure("observe", sees_data=False)
    settings = read_server(folder).observe
    ready = open_ready(folder, "observe")
    app = observe_app(
        token=read_token(folder),
        host=settings.host,
        health=lambda: server_reasons(folder),
        metrics=lambda: server_metrics(folder),
        routes=dashboard.routes(folder),
    )
    serve(folder, settings, app, on_ready=lambda: mark_ready(ready))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
