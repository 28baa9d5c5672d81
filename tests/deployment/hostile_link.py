"""A SuperLink that is hostile: it holds the aggregator's certificate, key and port.

Nodes connect to it as to the real one; what it answers is not made by Flower's server.

Args of `HostileLink`: where to listen and with what, number of each node by its public key, and
the node that gets the messages.
"""

import contextlib
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectResponse,
)
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from silotune.bundle import BUNDLE_SHA256

RUN = 815


class Raw:
    """An answer with headers and a body of one's own."""

    def __init__(self, parts, status=200, **headers):
        self.parts, self.status, self.headers = parts, status, headers


class HostileLink:
    """Answers nodes; counts what it sent and keeps what came back."""

    def __init__(self, port, certificate, key, ids, target):
        self.ids, self.target, self.over = ids, target, False
        self.queue, self.objects, self.runs = [], {}, {}
        self.replies, self.asked, self.sent, self.shaken = [], [], 0, 0
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                self.request.settimeout(30)
                outer.shaken += 1
                self.request = context.wrap_socket(self.request, server_side=True)
                super().setup()

            def finish(self):
                with contextlib.suppress(OSError):
                    super().finish()
                self.request.close()

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.answer(self, body)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        # Nodes keep their connections: they shall find the real one.
        self.over = True
        self.server.shutdown()
        self.server.server_close()

    def put(self, message, run=RUN, fab_hash=BUNDLE_SHA256, objects=None, tree=None):
        """Have a message ready for the node; ``objects`` stand in for its own."""
        message.metadata.__dict__.update(_run_id=run, _dst_node_id=self.target, _src_node_id=1)
        message.metadata.__dict__["_message_id"] = message.object_id
        own = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
        self.objects |= own | (objects or {})
        self.runs[run] = fab_hash
        head = message_to_proto(message)
        head.ClearField("content")
        head.content.SetInParent()
        tree = tree or get_object_tree(message)
        if tree.object_id != message.object_id:
            head.metadata.message_id = tree.object_id
        self.queue.append(PullMessagesResponse(messages_list=[head], message_object_trees=[tree]))
        return head.metadata.message_id

    def reply(self, message_id, timeout=180):
        """Return the reason with which the node refused a message."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            for reply in self.replies:
                if reply.metadata.reply_to_message_id == message_id:
                    return reply.error.reason
            time.sleep(0.1)
        raise AssertionError(f"no reply; the node asked for {self.asked[-10:]}")

    def until_taken(self, timeout=180):
        """Return once the node has asked for everything that waits."""
        until = time.monotonic() + timeout
        while self.queue:
            assert time.monotonic() < until, self.asked[-10:]
            time.sleep(0.1)

    def answer(self, handler, body):
        if self.over:
            handler.close_connection = True
            return
        name = handler.path.rpartition("/")[2]
        self.asked.append(name)
        made = getattr(self, "_" + name.replace("-", "_"))(body)
        if not isinstance(made, Raw):
            data = made if isinstance(made, bytes) else made.SerializeToString()
            made = Raw([data], content_length=len(data))
        handler.send_response(made.status)
        handler.send_header("content-type", "application/protobuf")
        for header, value in made.headers.items():
            handler.send_header(header.replace("_", "-"), str(value))
        if self.over or "content_length" not in made.headers:
            handler.close_connection = True
            handler.send_header("connection", "close")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for part in made.parts:
                handler.wfile.write(part)
                self.sent += len(part)
                if "content_length" not in made.headers and self.sent > 20 * 2**30:
                    return

    def _activate_node(self, body):
        key = ActivateNodeRequest.FromString(body).public_key
        return ActivateNodeResponse(node_id=self.ids[key])

    def _deactivate_node(self, _):
        return DeactivateNodeResponse()

    def _send_node_heartbeat(self, _):
        return SendNodeHeartbeatResponse(success=True)

    def _pull_messages(self, body):
        if PullMessagesRequest.FromString(body).node.node_id != self.target:
            return PullMessagesResponse()
        return self.queue.pop(0) if self.queue else PullMessagesResponse()

    def _get_run(self, body):
        run = GetRunRequest.FromString(body).run_id
        found = self.runs[run]
        if not isinstance(found, str):
            return found
        return GetRunResponse(run=Run(run_id=run, fab_hash=found, fab_id="x/x", series_id=run))

    def _get_fab(self, _):
        raise AssertionError("the bundle was fetched")

    def _pull_object(self, body):
        asked = PullObjectRequest.FromString(body).object_id
        found = self.objects[asked]
        found = found() if callable(found) else found
        if isinstance(found, bytes):
            return PullObjectResponse(
                object_found=True, object_available=True, object_content=found
            )
        return found

    def _push_messages(self, body):
        asked = PushMessagesRequest.FromString(body)
        self.replies += asked.messages_list
        return PushMessagesResponse(session_id="s")

    def _push_object(self, _):
        return PushObjectResponse(stored=True)

    def _confirm_message_received(self, _):
        return ConfirmMessageReceivedResponse()
