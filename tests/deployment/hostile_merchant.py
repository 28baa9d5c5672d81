"""A merchant that is hostile: its key is enrolled, its node is not Flower's."""

import contextlib
import json
import threading
import time
from functools import partial

from cryptography.hazmat.primitives import serialization
from flwr.app import Error, Message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.setup import _new_key
from silotune.invitation import Enrolment


class HostileMerchant:
    """Takes requests of the real SuperLink and answers them as each test likes.

    Use it in ``with``; it goes offline at the end.
    """

    def __init__(self, federation, name="hostile"):
        self.federation, self.name = federation, name
        self.key = serialization.load_pem_private_key(_new_key(), None)
        public = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.public = public
        self.trouble, self.answers = [], {}
        self._over = threading.Event()

    def enrol(self):
        made = Enrolment(name=self.name, public_key=self.public.decode(), nominal_users=60)
        path = self.federation.root / f"{self.name}.json"
        path.write_text(made.text())
        self.federation.silotune("server", "enrol", self.federation.server, path)

    def connect(self):
        """Flower's own connection with this key; it checks the authority only."""
        return fleet_http_connection.http_request_response(
            f"127.0.0.1:{self.federation.port}",
            False,
            (self.federation.server / "ca.crt").read_bytes(),
            (self.key, self.key.public_key()),
            max_retries=5,
        )

    def __enter__(self):
        # The node of a test of this process may have put a pinned one in its place.
        vars(fleet_http_connection)["FleetHttpClient"] = FleetHttpClient
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(30)

    def _live(self):
        with self.connect() as connection:
            self.node_id, receive, *rest = connection
            self._send, _, _, self._pull, self._push, self._confirm = rest
            while not self._over.wait(0.1):
                found = receive()
                if found is None:
                    continue
                head, tree = found
                run = head.metadata.run_id
                ids = [part.object_id for part in iterate_object_tree(tree)]
                # Parts may still be on their way.
                parts = pull_objects(ids, partial(self._pull, run), max_concurrent_pulls=1)
                message = inflate_object_from_contents(tree.object_id, parts)
                message.metadata.__dict__["_message_id"] = tree.object_id
                self._confirm(run, tree.object_id)
                self._answer(message)

    def _answer(self, message):
        round_ = json.loads(message.content["request"]["json"])["round"]
        try:
            self.answers[round_](self, message)
        except Exception as error:  # noqa: BLE001  # refused, as it should be
            self.trouble.append((round_, error))
        if round_ not in self.silent:
            # Whatever became of the attack, the round shall not have to wait for its deadline.
            with contextlib.suppress(Exception):
                self.push(Message(Error(100, "gave up"), reply_to=message))

    silent = frozenset()

    def push(self, reply, *, tree=None, objects=None, **head):
        """Send a reply; ``head`` changes what is said of it, not what is in it."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        own = {i: o.deflate() for i, o in get_all_nested_objects(reply).items()}
        own |= objects or {}
        known = tree or get_object_tree(reply)
        reply.metadata.__dict__.update({f"_{name}": value for name, value in head.items()})
        reply.metadata.__dict__["_message_id"] = known.object_id
        wanted, session = self._send(reply, known, 0.0)
        for object_id in sorted(wanted):
            self._push(reply.metadata.run_id, session, object_id, own[object_id])
        return reply

    def until_connected(self, timeout=180):
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if any(
                m["name"] == self.name and m["status"] == "online"
                for m in self.federation.status()["merchants"]
            ):
                return
            time.sleep(0.3)
        raise AssertionError("the hostile merchant does not connect")
