"""Contract of the aggregator's side with the pinned Flower: the SuperLink on its two listeners."""

import contextlib
import socket
import threading
import time
import zipfile
from io import BytesIO

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.flower_link import BUNDLE, Control, link_app, next_task, task_grid

SECRET = b"s" * 32
# Of the database migrations that Flower runs.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")


@pytest.fixture
def link(tmp_path):
    """The SuperLink behind its Unix socket, in a thread."""
    path = tmp_path / "link.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(8)
    app = link_app(tmp_path / "state.db", SECRET)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield path
    server.should_exit = True
    thread.join(10)
    listening.close()


def _key():
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_the_bundle_holds_no_code():
    with zipfile.ZipFile(BytesIO(BUNDLE.content)) as archive:
        assert archive.namelist() == ["pyproject.toml"]
        assert b"Holds no code" in archive.read("pyproject.toml")


def test_a_node_is_registered_once_and_listed(link):
    key = _key()
    with Control(link) as control:
        number = control.register(key, "merchant")
        with pytest.raises(httpx.HTTPStatusError):
            control.register(key, "again")
        (node,) = control.nodes()
    assert (node.node_id, node.name, node.public_key) == (number, "merchant", key)
    assert node.status == "registered"


def test_a_run_becomes_a_task_that_only_the_secret_takes(link):
    with Control(link) as control:
        run = control.start_run()
        with pytest.raises(httpx.HTTPStatusError, match=r"40[13]"):
            next_task(link, b"x" * 32)
        found = next_task(link, SECRET)
        assert found is not None
        assert found[0] == run
        # Once.
        assert next_task(link, SECRET) is None
        with task_grid(link, found[1]) as grid:
            assert list(grid.get_node_ids()) == []
            # A message that nobody sent comes back as an error, not as a wait without end.
            assert [m.has_error() for m in grid.pull_messages(["0" * 64])] == [True]
        # The task is over: its token opens nothing.
        with pytest.raises(httpx.HTTPError), task_grid(link, found[1]):
            pass


def test_a_run_that_was_stopped_gives_no_task(link):
    with Control(link) as control:
        first = control.start_run()
        control.stop_run(first)
        # Twice is as good as once.
        control.stop_run(first)
        second = control.start_run()
    assert second != first
    taken = [next_task(link, SECRET) for _ in range(2)]
    assert [t[0] for t in taken if t] == [second]


def test_a_task_that_fails_is_told_to_the_superlink(link):
    with Control(link) as control:
        control.start_run()
        found = next_task(link, SECRET)
        assert found is not None

        def fail():
            with task_grid(link, found[1]):
                raise KeyError("x")

        with pytest.raises(KeyError):
            fail()
        with contextlib.suppress(httpx.HTTPError):
            assert next_task(link, SECRET) is None
