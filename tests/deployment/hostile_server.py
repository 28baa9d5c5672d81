"""An operator who is hostile: he holds the aggregator's folder, and sends what he likes.

His messages go through the real SuperLink, so silos meet them as they meet any other.
"""

import contextlib
import hashlib
import time
from dataclasses import replace

from flwr.app import Message
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest

from server.flower_link import BUNDLE, Control, next_task, task_grid
from server.runs import RunFile
from silotune.config import from_toml
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.text_model import TextModel
from silotune.supervised import socket_path


class Operator:
    """Sends messages of his own making in runs of his own making."""

    def __init__(self, federation, file=None):
        self.federation = federation
        self.socket = socket_path(federation.server, "superlink.sock")
        self.secret = (federation.server / "superexec.secret").read_bytes()
        self.asked = from_toml(RunFile, file or federation.run_file())
        self.model = TextModel(
            self.asked.model,
            numeric_size=len(self.asked.task.numeric_names),
            outputs=self.asked.task.outputs,
            public_texts=self.asked.task.public_texts(),
        )

    @contextlib.contextmanager
    def run(self, bundle=BUNDLE):
        """Start a run of ``bundle`` by the Control API and yield its `Sender`."""
        with Control(self.socket) as control:
            asked = StartRunRequest(fab=fab_to_proto(bundle))
            number = int(control._client.StartRun(asked).run_id)
            try:
                with task_grid(self.socket, self._token(number)) as grid:
                    yield Sender(grid, self._nodes())
            finally:
                control.stop_run(number)

    def _token(self, number):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            task = next_task(self.socket, self.secret)
            if task is not None and task[0] == number:
                return task[1]
            time.sleep(0.1)
        raise AssertionError("the SuperLink gives no task")

    def _nodes(self):
        return {m["name"]: m["node"] for m in self.federation.status()["merchants"]}

    def train(self, **changes):
        """An honest request to train, but for ``changes``."""
        job = self.asked.job
        honest = TrainRequest(
            job=job.name,
            round=0,
            task=self.asked.task.name,
            model=job.model,
            base_digest=self.model.base_digest,
            layout_digest=self.model.layout.digest,
            private=job.private,
        )
        return replace(honest, **changes)

    def measure(self, **changes):
        """A request for metrics with noise, but for ``changes``."""
        honest = MetricsRequest(
            job=self.asked.job.name,
            round=0,
            task=self.asked.task.name,
            model=self.asked.job.model,
            base_digest=self.model.base_digest,
            layout_digest=self.model.layout.digest,
            metrics={"noise_multiplier": 8.0, "bins": 10, "examples_per_user": 8},
        )
        return replace(honest, **changes)


class Sender:
    """One run's messages and their replies."""

    def __init__(self, grid, nodes):
        self.grid, self.nodes = grid, nodes

    def ask(self, silo, contents, timeout=240):
        """Send all of ``contents``, (kind, content) by name, at once; return the replies by name.

        One that does not come in time is None.
        """
        sent = {
            name: Message(content=content, message_type=kind, dst_node_id=self.nodes[silo.name])
            for name, (kind, content) in contents.items()
        }
        return self.replies(
            dict(zip(sent, self.grid.push_messages(sent.values()), strict=True)),
            timeout,
        )

    def replies(self, ids, timeout=240):
        """Return the replies to the messages ``ids`` by name, or None."""
        found, until = dict.fromkeys(ids), time.monotonic() + timeout
        while time.monotonic() < until and (open_ := [n for n in ids if found[n] is None]):
            for name in open_:
                for answer in self.grid.pull_messages([ids[name]]):
                    found[name] = answer
            time.sleep(0.2)
        return found


def reasons(replies):
    """Return what each reply was refused with; 'answered' for one that was not."""
    return {
        name: "no reply" if r is None else r.error.reason if r.has_error() else "answered"
        for name, r in replies.items()
    }


def ledger_bytes(silo):
    """Return a digest of every byte of the silo's ledger, its anchor and stored releases."""
    parts = sorted(p for p in silo.rglob("ledger*") if p.is_file())
    parts += sorted((silo / "ledger-releases").glob("*"))
    assert parts
    return {str(p.relative_to(silo)): hashlib.sha256(p.read_bytes()).hexdigest() for p in parts}
