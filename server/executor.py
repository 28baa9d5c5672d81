"""The executor process: ``python -m server.executor FOLDER``. Runs what the aggregator queued.

It runs the code that is installed here. Flower's own executor would unpack and import the bundle
of whoever started the run; here nothing is unpacked.

A run goes on where it was: the adapters of its rounds are durable, and whoever is killed starts
again at the first round that is not there, under a new run of Flower's.
"""

import logging
import signal
import sys
from pathlib import Path
from threading import Event

import httpx
from flwr.serverapp import Grid

from server.exchange import QuorumError
from server.flower_link import RUN_ENDED, Control, next_task, task_grid
from server.rounds import run_job
from server.run_store import RunStore
from server.runs import Run, list_runs
from server.starts import start_of
from silotune.errors import MessageError, SilotuneError, StorageError
from silotune.federation import model_for
from silotune.logs import configure, event, give_up, why
from silotune.models.text_model import TextModel
from silotune.supervised import leave, mark_ready, open_ready, socket_path, watch_parent

__all__ = ["main"]

_LOOK = 0.3
"""Seconds between two looks for work."""
_AGAIN = 5.0
"""Seconds before a run goes on that the disk stopped."""


def main(folder: Path) -> None:
    """Run what is queued until told to stop."""
    watch_parent()
    configure("executor", sees_data=False)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    executor = _Executor(folder, stop)
    mark_ready(open_ready(folder, "executor"))
    while not stop.wait(_LOOK):
        try:
            run = next((r for r in list_runs(folder) if r.status().state in _OPEN), None)
            if run is not None:
                executor.execute(run)
        except (OSError, StorageError) as error:
            # A full disk, say. The run is still open.
            event("cannot work", logging.ERROR, **why(error, sees_data=False))
            stop.wait(_AGAIN)
        except SilotuneError as error:
            give_up(error)


_OPEN = ("waiting", "running")
_ATTEMPTS = 3
"""How often a round begins that too few answer. Merchants repeat a stored release."""


class _Executor:
    def __init__(self, folder: Path, stop: Event) -> None:
        self._socket = socket_path(folder, "superlink.sock")
        self._secret = (folder / "superexec.secret").read_bytes()
        self._stop = stop

    def execute(self, run: Run) -> None:
        try:
            asked = run.file()
            model = model_for(asked.model, asked.task)
            with task_grid(self._socket, self._token(run)) as grid:
                self._train(run, model, grid)
        except StorageError as error:
            run.note(message=str(error))
            raise
        except (httpx.HTTPError, *RUN_ENDED) as error:
            # The SuperLink is away, or gave the task up; the run is still open.
            event("superlink is away", run=run.name, **why(error, sees_data=False))
            self._stop.wait(2.0)
        except SilotuneError as error:
            if not self._stop.is_set():
                event("run failed", run=run.name, **why(error, sees_data=False))
                run.note(state="failed", message=str(error))
        else:
            event("run finished", run=run.name)
            run.note(state="finished", message="")

    def _token(self, run: Run) -> str:
        """Start the run with Flower and take its task."""
        status = run.status()
        with Control(self._socket) as control:
            if status.flower_run:
                control.stop_run(status.flower_run)
            flower_run = control.start_run()
        event("run started", run=run.name, starts=status.starts + 1)
        run.note(state="running", flower_run=flower_run, starts=status.starts + 1)
        while not self._stop.wait(0.1):
            task = next_task(self._socket, self._secret)
            if task is not None and task[0] == flower_run:
                return task[1]
            # Another's: of a run that was stopped, or that nobody here has asked for. It waits
            # for its end unanswered.
        raise MessageError("the run was stopped; rounds that are done are kept.")

    def _train(self, run: Run, model: TextModel, grid: Grid) -> None:
        asked = run.file()
        options = asked.options(self._stop)
        store = RunStore(run.rounds, model.layout.digest)
        start_D = start_of(asked.job, model, run.folder.parent)
        attempts, round_ = 0, store.next_round()
        while True:
            try:
                run_job(
                    grid, asked.job, model, store, options, task=asked.task.name, start_D=start_D
                )
            except QuorumError as error:
                # A round that few answered may find them back; what they refuse, they refuse again.
                attempts = 1 if store.next_round() > round_ else attempts + 1
                round_ = store.next_round()
                if error.final or attempts >= _ATTEMPTS or self._stop.is_set():
                    raise
                event("round again", run=run.name, **why(error, sees_data=False))
            else:
                return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
