"""Flower's simulation engine on Ray. The one place that touches Flower's private modules.

`flwr.simulation.run_simulation` is deprecated and hides the outcome of the ServerApp; the
function below it takes ready-made apps. `tests/simulations/test_engines.py` is the
contract test against the pinned version.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.client_app import app as client_app
from server.server_app import run_federation
from silotune.errors import SilotuneError
from silotune.federation import FEDERATION_VARIABLE

__all__ = ["run_flower"]

_LOGGER = logging.getLogger("flwr")

_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def run_flower(
    federation: Path,
    nodes: int,
    *,
    workers: int,
    on_reply: Callable[[str, int, int], None] = lambda *_: None,
    app: ClientApp = client_app,
) -> None:
    """Run every job of the federation file on Ray workers.

    Args:
        federation: path of the federation file.
        nodes: simulated nodes, one per silo.
        workers: worker processes, one processor each.
        on_reply: called in this process with job, round and replies so far.
        app: what the workers run; benchmarks wrap it.

    Raises:
        SilotuneError: what the ServerApp raised.
    """
    import ray
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.telemetry import EventType

    raised: list[SilotuneError] = []
    stop = Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            run_federation(grid, federation, on_reply, stop)
        except SilotuneError as error:
            # Flower wraps exceptions of the ServerApp; the caller wants the message.
            raised.append(error)

    _LOGGER.setLevel(logging.ERROR)
    # Ray starts its processes with this environment; Flower takes `runtime_env` for itself.
    os.environ.update(_ENVIRONMENT, **{FEDERATION_VARIABLE: str(federation)})
    # Flower's type for the Ray options leaves out nested ones, which Ray itself takes.
    backend: dict[str, Any] = {
        "init_args": {
            "num_cpus": workers,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        },
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    try:
        with _quiet_once_interrupted():
            _run_simulation(
                num_supernodes=nodes,
                exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
                client_app=app,
                server_app=server_app,
                backend_config=backend,
            )
    finally:
        # The ServerApp is a thread: without Ray below it, it would wait for ever.
        stop.set()
        # Flower does so too, unless it was interrupted on the way.
        ray.shutdown()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def _quiet_once_interrupted() -> Iterator[None]:
    # Ctrl-C reaches Ray's workers as well. Flower tells the end of each with a stack, before the
    # interruption has come to the caller, who says all that there is to say.
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        _LOGGER.setLevel(logging.CRITICAL)
        before(number, frame)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
