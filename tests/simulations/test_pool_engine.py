"""Rounds on the simulation's own workers: the same numbers, and what a dead worker costs."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from client.client_app import app as silos
from privacy.ledger import Ledger
from server.run_store import RunStore
from silotune.federation import build_model, read_federation
from silotune.tables.silo_folder import SiloFolder
from simulations.inline_engine import run_inline
from simulations.pool import SiloPool, prepare
from simulations.pool_engine import PoolGrid, run_pool

HERE = "tests.simulations.test_pool_engine"
PRIVATE = {
    "clip_norm": 2.0,
    "noise_multiplier": 1.0,
    "sampling_rate": 0.5,
    "examples_per_user": 8,
    "steps": 2,
    "learning_rate": 0.5,
}

deadly = ClientApp()
"""Ends its process when node 2 is asked in the second round, as often as a file says."""


@deadly.train()
def _deadly(message, context):
    asked = json.loads(message.content["request"]["json"])
    left = Path(context.run_config["federation"]).with_name("deaths")
    if context.node_id == 2 and asked["round"] == 1 and (often := int(left.read_text())):
        left.write_text(str(often - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return silos(message, context)


def _rounds(path, job="private"):
    federation = read_federation(path)
    wanted = next(j for j in federation.jobs if j.name == job)
    model = build_model(federation.models, wanted.model, federation.task)
    store = RunStore(path.parent / "rounds" / job, model.layout.digest)
    return store.load(wanted.rounds - 1), list(store.records())


def _what_it_has_done(worker):
    return os.getpid(), worker.work.models_loaded, worker.work.texts_tokenised


def test_the_pool_gives_the_same_bits_as_one_process_and_has_loaded_everything(
    small_federation, tmp_path
):
    here, there = tmp_path / "inline", tmp_path / "pool"
    here.mkdir()
    there.mkdir()
    inline = small_federation(here, "plain", "private", noise_seed=5)
    torch.set_num_threads(1)
    run_inline(inline, 3)
    path = small_federation(there, "plain", "private", noise_seed=5)
    federation = read_federation(path)
    seen = []
    with SiloPool(path, 1) as pool:
        pool.each([(prepare, (SiloFolder.open(Path(s)),)) for s in federation.silos], _nothing)
        before = pool.submit(_what_it_has_done).result()
        # As a comparison does once it knows who takes part: the file is written anew.
        replace(federation, silos=federation.silos[::-1]).save(path)
        federation.save(path)
        run_pool(3, pool, lambda *told: seen.append(told))
        after = pool.submit(_what_it_has_done).result()
    for job in ("plain", "private"):
        ours, theirs = _rounds(path, job), _rounds(inline, job)
        assert torch.equal(ours[0], theirs[0])
        assert [r["replies"] for r in ours[1]] == [3, 3]
    assert seen[-1] == ("private", 1, 3)
    # The rounds ran where the examples are, and loaded and tokenised nothing more.
    assert before == after
    assert before[1] == 1


def _nothing(*_):
    pass


@pytest.mark.parametrize(("deaths", "replies"), [(1, 3), (3, 2)])
def test_a_dead_worker_costs_one_message_and_no_third_of_a_silo_is_tried(
    small_federation, tmp_path, deaths, replies
):
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    calm.mkdir()
    wild.mkdir()
    path = small_federation(wild, "private", noise_seed=5)
    (wild / "deaths").write_text(str(deaths))
    with SiloPool(path, 2) as pool:
        run_pool(3, pool, app=f"{HERE}:deadly")
    adapter_D, records = _rounds(path)
    assert (wild / "deaths").read_text() == "0"
    assert [r["replies"] for r in records] == [3, replies]
    assert records[1]["asked_again"] == min(deaths, 2)
    if replies == 3:
        undisturbed = small_federation(calm, "private", noise_seed=5)
        run_inline(undisturbed, 3)
        assert torch.allclose(adapter_D, _rounds(undisturbed)[0], atol=1e-5)
    else:
        assert "memory or disk is full" in " ".join(records[1]["reasons"])
    for node, folder in enumerate(read_federation(path).silos, 1):
        name = SiloFolder.open(Path(folder)).info.name
        # It died before it trained: nothing is charged twice.
        with Ledger(wild / "ledgers" / "private" / f"{name}.db") as ledger:
            rounds = 1 if replies == 2 and node == 2 else 2
            assert [e.steps for e in ledger.events()] == [2] * rounds


def test_what_a_silo_raises_is_its_reply_and_a_pull_of_nothing_does_not_wait(
    small_federation, tmp_path
):
    path = small_federation(tmp_path, "plain")
    with SiloPool(path, 1) as pool:
        grid = PoolGrid(1, pool, app="client.client_app:nothing")
        message = Message(content=RecordDict(), message_type="train", dst_node_id=1, ttl=60)
        (known,) = grid.push_messages([message])
        assert grid.pull_messages(["another"]) == []
        (reply,) = grid.pull_messages([known])
        assert reply.metadata.reply_to_message_id == known
        assert "AttributeError" in reply.error.reason
        assert grid.pull_messages([known]) == []
