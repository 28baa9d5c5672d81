"""The app bundle that Flower asks for. It holds no code: both sides run what they have installed.

Both sides make the same bytes. The merchant's node takes no other from the aggregator, and a run
that was started with another is refused.
"""

import hashlib
import io
import zipfile

__all__ = ["BUNDLE", "BUNDLE_SHA256", "FOREIGN"]

_PROJECT = """\
[project]
name = "silotune"
version = "1.0.0"
description = "Holds no code: both sides run what they have installed."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "silotune"

[tool.flwr.app.components]
serverapp = "server.server_app:app"
clientapp = "client.client_app:app"

[tool.flwr.app.config]
run = ""
"""


def _bundle() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        # A fixed time: the same bytes, so the same digest, everywhere.
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), _PROJECT)
    return content.getvalue()


BUNDLE = _bundle()
"""A ZIP archive with a ``pyproject.toml`` in it, and nothing else."""
BUNDLE_SHA256 = hashlib.sha256(BUNDLE).hexdigest()
FOREIGN = "foreign"
"""The node tells the daemon with this name that a run was started with another bundle."""
