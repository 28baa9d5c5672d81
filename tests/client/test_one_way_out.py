"""Reads the code: there is one place that hands anything to Flower, and it takes a release."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SILO_SIDE = sorted((ROOT / "client").rglob("*.py")) + sorted((ROOT / "privacy").rglob("*.py"))
DOOR = ROOT / "client" / "door.py"
# The merchant's own command: writes a release into a file in place of a message.
FILE_DOOR = ROOT / "client" / "centroids.py"
APP = ROOT / "client" / "client_app.py"
NODE = ROOT / "client" / "flower_node.py"
LIMITS = ROOT / "client" / "node_limits.py"
FIRST_LOOK = ROOT / "client" / "first_look.py"
TASKS = ROOT / "client" / "flower_tasks.py"
DAEMON = ROOT / "client" / "daemon.py"
# Who may know Flower: the door makes messages; the app and the daemon hand them to it.
KNOW_FLOWER = {DOOR, APP, NODE, LIMITS, TASKS, DAEMON}
# What may carry bytes, and what it then must not know: anything of the silo.
MAY_CARRY = {
    NODE: {"httpx", "socket"},
    LIMITS: {"httpx"},
    FIRST_LOOK: {"httpx"},
    TASKS: {"httpx"},
}
# Constants, kinds of errors, the process's log, and each other.
MAY_KNOW = (
    "silotune.bundle",
    "silotune.errors",
    "silotune.logs",
    "client.node_limits",
    "client.first_look",
)
# Whatever can carry bytes to another machine.
CARRIERS = {
    "asyncio",
    "ftplib",
    "grpc",
    "http",
    "httpx",
    "multiprocessing.connection",
    "requests",
    "smtplib",
    "socket",
    "subprocess",
    "urllib",
    "urllib3",
    "xmlrpc",
}


def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _called(node):
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _attributes(tree, name):
    """How often ``x.name`` is handed on without being called."""
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    return len(
        [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.Attribute) and n.attr == name and id(n) not in called
        ]
    )


def _calls(tree, name):
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _called(n) == name]


def test_the_walk_sees_the_silo_side():
    names = {p.name for p in SILO_SIDE}
    assert {"client_app.py", "silo.py", "egress.py", "ledger.py", "trainer.py"} <= names
    assert {p.name for p in KNOW_FLOWER} <= names


@pytest.mark.parametrize("path", SILO_SIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_door_and_its_carriers_know_flower_or_a_network(path):
    found = set(_imports(_tree(path)))
    if path not in KNOW_FLOWER:
        assert not {n for n in found if n.split(".")[0] == "flwr"}
    carriers = {n for n in found if n in CARRIERS or n.split(".")[0] in CARRIERS}
    assert {c.split(".")[0] for c in carriers} <= MAY_CARRY.get(path, set())


@pytest.mark.parametrize("path", sorted(MAY_CARRY), ids=lambda p: p.name)
def test_what_carries_bytes_knows_nothing_of_the_silo(path):
    ours = {"client", "privacy", "torch", "silotune"}
    known = {n for n in _imports(_tree(path)) if n.split(".")[0] in ours}
    assert not {n for n in known if not n.startswith(MAY_KNOW)}


def test_what_the_node_carries_is_the_doors_answer():
    tree = _tree(TASKS)
    pushed = [ast.unparse(c) for c in _calls(tree, "_push")]
    assert pushed == ["_push(client, answer(message), node)"]
    for name in ("PushMessages", "PushObject"):
        assert len(_calls(tree, name)) + _attributes(tree, name) == 1
    # Nothing else of a task goes back: no state, no details.
    (ended,) = _calls(tree, "PushTaskOutputRequest")
    assert [k.arg for k in ended.keywords] == ["sub_status"]
    (served,) = _calls(_tree(DAEMON), "serve")
    (answer,) = [k for k in served.keywords if k.arg == "answer"]
    assert ast.unparse(answer.value) == "answer"
    (made,) = [
        f for f in ast.walk(_tree(DAEMON)) if isinstance(f, ast.FunctionDef) and f.name == "answer"
    ]
    lines = [ast.unparse(n) for n in made.body]
    assert lines[0] == "made = respond(message, lambda: place)"
    assert lines[-1] == "return made"
    assert not [n for n in ast.walk(made) if isinstance(n, ast.Assign)][1:]


@pytest.mark.parametrize("path", sorted({*KNOW_FLOWER, DAEMON}), ids=lambda p: p.name)
def test_nothing_unpacks_or_runs_what_a_server_sends(path):
    text = path.read_text(encoding="utf-8")
    words = ("install_from_fab", "load_client_app", "zipfile", "importlib", "pickle", "eval(")
    for word in (*words, "exec(", "fab_from_proto", "__import__", "subprocess"):
        assert word not in text


@pytest.mark.parametrize("path", SILO_SIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_on_the_silo_side_prints_or_logs_values(path):
    tree = _tree(path)
    assert not _calls(tree, "print")
    for level in ("debug", "info", "warning", "error", "exception", "critical", "log"):
        for call in _calls(tree, level):
            # `torch.log` and its like are no logging.
            if isinstance(call.func, ast.Attribute) and "logg" in ast.unparse(call.func.value):
                assert all(isinstance(a, ast.Constant) for a in call.args), ast.unparse(call)


def test_the_door_makes_two_messages_a_release_and_a_refusal():
    messages = _calls(_tree(DOOR), "Message")
    contents = sorted(ast.unparse(m.args[0]) for m in messages)
    assert contents == [
        "Error(code=_REFUSED, reason=refusal(error))",
        "reply(out.array(), out.name)",
    ]
    for message in messages:
        assert [k.arg for k in message.keywords] == ["reply_to"]


def test_what_the_door_replies_with_came_from_the_silo_by_its_gate():
    tree = _tree(DOOR)
    made = [
        ast.unparse(n.value)
        for n in ast.walk(tree)
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "out"
    ]
    assert made == ["silo.measure(what, adapter_D, model)", "silo.train(what, adapter_D, model)"]


def test_what_a_silo_returns_came_from_its_gate():
    tree = _tree(ROOT / "client" / "silo.py")
    (silo,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Silo"]
    makers = [
        f
        for f in silo.body
        if isinstance(f, ast.FunctionDef) and f.returns and ast.unparse(f.returns) == "Outgoing"
    ]
    names = {f.name for f in makers}
    assert names == {"train", "measure", "_train_private", "_train_plain", "_measure"}
    for maker in makers:
        returned = {ast.unparse(n.value) for n in ast.walk(maker) if isinstance(n, ast.Return)}
        for value in returned:
            assert value in ("out", "stored") or value.startswith("self._gate.release"), value
        made = {
            ast.unparse(n.value)
            for n in ast.walk(maker)
            if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) in ("out", "stored")
        }
        for value in made:
            assert (
                value.startswith("self._gate.")
                or value.removeprefix("self.").partition("(")[0] in names
            ), value


def test_the_door_keeps_no_state_and_makes_no_record_where_flower_could_send_it():
    tree = _tree(DOOR)
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert "state" not in names
    imported = set(_imports(tree))
    for record in ("MetricRecord", "ConfigRecord", "ArrayRecord", "RecordDict", "Array"):
        assert f"flwr.app.{record}" not in imported


def test_every_statement_of_the_door_is_inside_its_try():
    (door,) = [
        n for n in _tree(DOOR).body if isinstance(n, ast.FunctionDef) and n.name == "respond"
    ]
    statements = [s for s in door.body if not isinstance(s, ast.Expr)]
    # A constant before it; then the try, which catches everything and ends the function.
    assert ast.unparse(statements[0]) == "log = Path('silo.log')"
    assert len(statements) == 2
    attempt = statements[1]
    assert isinstance(attempt, ast.Try)
    assert [ast.unparse(h.type) for h in attempt.handlers] == ["Exception"]
    assert not attempt.finalbody
    assert not any(isinstance(n, ast.Raise) for h in attempt.handlers for n in ast.walk(h))


def test_the_handlers_of_the_app_only_hand_on_to_the_door():
    tree = _tree(APP)
    handlers = [
        f
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef)
        and any(
            isinstance(d, ast.Call) and ast.unparse(d).startswith("app.") for d in f.decorator_list
        )
    ]
    assert [f.name for f in handlers] == ["answer"]
    assert [ast.unparse(d) for d in handlers[0].decorator_list] == ["app.train()", "app.evaluate()"]
    statements = [ast.unparse(s) for s in handlers[0].body if not isinstance(s, ast.Expr)]
    assert statements == ["return respond(message, lambda: _find(context))"]
    for path in (APP, DAEMON):
        assert not _calls(_tree(path), "Message")


@pytest.mark.parametrize("path", SILO_SIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_gate_makes_an_outgoing_and_only_the_doors_open_one(path):
    tree = _tree(path)
    if path.name != "egress.py":
        assert not _calls(tree, "Outgoing")
        assert "_TOKEN" not in {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert not {n for n in _imports(tree) if n.endswith("._TOKEN")}
    if path not in (DOOR, FILE_DOOR):
        assert not _calls(tree, "vector")
    if path != DOOR:
        assert not _calls(tree, "reply")


def test_what_the_file_of_centroids_holds_came_by_the_gate_or_is_public():
    tree = _tree(FILE_DOOR)
    functions = {f.name: f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    made = {
        ast.unparse(n.targets[0]): ast.unparse(n.value)
        for n in ast.walk(functions["release_centroids"])
        if isinstance(n, ast.Assign)
    }
    assert made["released"] == "one.out(asks, space, initial_KP, as_of, facts)"
    assert made["noisy_D"] == "released.vector()"
    assert made["(centroid_KP, count_K)"] == "read_centroids(noisy_D, plan, initial_KP)"
    assert made["tensors"] == (
        "{'released': noisy_D.numpy(), 'centroids': centroid_KP, 'counts': count_K, "
        "'initial': initial_KP, 'centre': space.centre_X, 'axes': space.axes_XP}"
    )
    assert made["content"] == "save(tensors, {'silotune': json.dumps(told)})"
    assert len(_calls(tree, "write_file")) == len(_calls(tree, "save")) == 1
    # The space, the first centroids and the words know the model and the plan, and no customer.
    assert made["space"] == "public_space(model, asks, plan.axes)"
    assert made["initial_KP"] == "_first_centroids(space, plan)"
    assert made["facts"] == "_facts(silo, settings, plan, as_of)"
    assert not _calls(functions["_facts"], "connect")
    # Made with an adapter that the aggregator knows.
    assert made["settings"] == "kept_settings(folder, task, job=job)"
    outs = {ast.unparse(n.value) for n in ast.walk(functions["out"]) if isinstance(n, ast.Return)}
    assert all(o == "stored" or o.startswith("self.gate.release(") for o in outs)
    stored = [
        ast.unparse(n.value)
        for n in ast.walk(functions["out"])
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "stored"
    ]
    assert stored == ["self.gate.again(request)"]
    # Charged before a customer is looked at.
    lines = [ast.unparse(n) for n in functions["out"].body]
    (charged,) = [i for i, line in enumerate(lines) if "self._ledger.reserve(" in line]
    (looked,) = [i for i, line in enumerate(lines) if "self._points(" in line]
    assert charged < looked


def test_a_reply_holds_one_array_and_nothing_else():
    tree = _tree(ROOT / "silotune" / "messages.py")
    (function,) = [
        f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "reply"
    ]
    (returned,) = [n for n in ast.walk(function) if isinstance(n, ast.Return)]
    assert ast.unparse(returned.value) == "RecordDict({name: _pack(release)})"
