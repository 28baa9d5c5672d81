"""Centroids leave noised, charged and by the gate, or no file is written."""

import datetime as dt
import hashlib
import json
import multiprocessing
import os
import signal

import duckdb
import numpy as np
import pytest
import torch
from safetensors import safe_open

import client.centroids
from client.centroids import release_centroids
from client.customer_space import public_space
from client.prepared import prepare
from client.score import load_model
from client.score_settings import kept_settings
from privacy.accounting import epsilon_spent
from privacy.centroids import CentroidPlan
from privacy.chain import Chain
from privacy.ledger import Ledger
from privacy.ledger_report import verify
from silotune.errors import (
    BudgetError,
    ConfigError,
    EgressError,
    LedgerError,
    ModelError,
    PolicyError,
)
from tests.client.merchant import INVITATION, take_part
from tests.client.scoring import DATE, SEGMENT, exported
from tests.privacy.test_centroids import sums_of

PLAN = CentroidPlan(noise_multiplier=8.0, clusters=3, axes=2)


@pytest.fixture
def merchant(silo):
    take_part(silo.path)
    return silo


def release(silo, out, plan=PLAN, date=DATE, **changes):
    return release_centroids(
        silo.path, plan, **({"task": SEGMENT.name, "as_of": date, "out": out} | changes)
    )


def entries(silo):
    path = silo.path / "ledger.db"
    return Chain.read(path) if path.exists() else ()


def kinds(silo):
    return [e.kind for e in entries(silo)]


def read(path):
    with safe_open(path, framework="np") as file:
        about = json.loads(file.metadata()["silotune"])
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def test_a_file_is_written_with_a_receipt_in_the_ledger(merchant, tmp_path):
    out = tmp_path / "new" / "c.safetensors"
    found = release(merchant, out)
    tensors, about = read(out)
    assert kinds(merchant) == ["genesis", "reserve", "release", "settle"]
    (reserved,) = [e for e in entries(merchant) if e.kind == "reserve"]
    (receipt,) = [e for e in entries(merchant) if e.kind == "release"]
    assert reserved.body["what"]["server"] == INVITATION.identity
    # The numbers are those that the receipt speaks of.
    assert hashlib.sha256(tensors["released"].tobytes()).hexdigest() == receipt.body["sha256"]
    assert about["sha256"] == receipt.body["sha256"]
    assert about["private"] is True
    assert (found.centroid_KP.shape, found.count_K.shape) == ((3, 2), (3,))
    assert found.epsilon == pytest.approx(epsilon_spent([PLAN.event], delta=1e-4))
    assert found.spent == verify(merchant.path / "ledger.db").epsilon
    assert out.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in out.parent.iterdir()] == ["c.safetensors"]


def test_nothing_but_the_numbers_themselves_depends_on_the_customers(merchant, tmp_path):
    release(merchant, tmp_path / "1")
    first, about = read(tmp_path / "1")
    seen = str([(e.kind, e.body) for e in entries(merchant)[1:]]).replace(about["sha256"], "")
    for path in merchant.path.glob("ledger*"):
        if path.is_file():
            path.unlink()
    # Nobody is left who could be asked about.
    _without(merchant, "TRUE")
    release(merchant, tmp_path / "2")
    second, again = read(tmp_path / "2")
    assert (
        str([(e.kind, e.body) for e in entries(merchant)[1:]]).replace(again["sha256"], "") == seen
    )
    assert about | {"sha256": ""} == again | {"sha256": ""}
    for name in ("initial", "centre", "axes"):
        assert np.array_equal(first[name], second[name])
    assert first["released"].all()
    assert second["released"].all()
    assert not np.array_equal(first["released"], second["released"])


def _without(silo, where):
    events = silo.path / "events.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT * FROM read_parquet('{events}') WHERE NOT ({where})) "
            f"TO '{events}.new' (FORMAT parquet)"
        )
    events.with_name("events.parquet.new").replace(events)


def test_tables_with_one_customer_less_move_the_sums_by_no_more_than_is_charged(merchant):
    model = load_model(kept_settings(merchant.path, SEGMENT.name))
    space = public_space(model, SEGMENT, PLAN.axes)
    initial = client.centroids._first_centroids(space, PLAN)

    def sums():
        examples = SEGMENT.build_at(merchant, DATE)
        points = space.coordinates(model, prepare(examples, model))
        return examples.keys["user_id"], *sums_of(points, examples.user_E, PLAN, initial)

    users, before, grid = sums()
    assert len(users) > 8
    for user in users[:5]:
        _without(merchant, f"user_id = '{user}'")
        _, after, _ = sums()
        moved = (before - after).tolist()
        assert 0 < sum(m * m for m in moved) <= grid.most_squared
        before = after


def test_the_same_again_is_the_same_bytes_at_no_further_cost(merchant, tmp_path):
    first = release(merchant, tmp_path / "1")
    content = (tmp_path / "1").read_bytes()
    (tmp_path / "1").unlink()
    again = release(merchant, tmp_path / "2")
    assert (first.again, again.again) == (False, True)
    assert again.spent == first.spent
    assert (tmp_path / "2").read_bytes() == content
    assert kinds(merchant).count("reserve") == 1
    # Another date is another release.
    assert not release(merchant, tmp_path / "3", date=DATE + dt.timedelta(days=7)).again
    assert kinds(merchant).count("reserve") == 2


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"metrics": {}}, "'centroids' is not listed"),
        ({"metrics": {"scores": 9.0}}, "'centroids' is not listed"),
        ({"metrics": {"centroids": 0.1}}, "'centroids' at ε"),
        ({"tasks": ["customer-churn"]}, "task: 'customer-segment' is not listed"),
        ({"servers": ["other"]}, "server:"),
        ({"base_digests": ["other"]}, "base_digest:"),
        ({"mechanisms": ["gaussian"]}, "mechanism:"),
        ({"delta": 0.5}, "delta:"),
    ],
)
def test_outside_the_policy_nothing_is_charged_or_written(silo, tmp_path, policy, words):
    take_part(silo.path, **policy)
    with pytest.raises(PolicyError, match=words):
        release(silo, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert "reserve" not in kinds(silo)


def test_seeded_noise_is_refused_unless_allowed_and_then_marked(silo, tmp_path):
    for allowed in (False, True):
        take_part(silo.path, seeded_noise=allowed)
        path = silo.path / "client.toml"
        # Keys of the top come before the tables.
        path.write_text(f"noise_seed = 1\n{path.read_text()}")
        if not allowed:
            with pytest.raises(PolicyError, match="seeded"):
                release(silo, tmp_path / "c")
            continue
        release(silo, tmp_path / "c")
        assert read(tmp_path / "c")[1]["private"] is False


def test_the_ledger_refuses_when_the_budget_is_out(silo, tmp_path):
    take_part(silo.path, epsilon=1.0)
    dates = [DATE + dt.timedelta(days=day) for day in range(20)]
    # All of it counts together, not each release alone.
    costs = [epsilon_spent([PLAN.event] * n, delta=1e-4) for n in range(1, 20)]
    number = sum(cost <= 1.0 for cost in costs)
    assert 2 <= number < 19
    for n in range(number):
        found = release(silo, tmp_path / f"{n}", date=dates[n])
        assert found.spent == pytest.approx(costs[n])
    with pytest.raises(BudgetError, match="budget: spent"):
        release(silo, tmp_path / "more", date=dates[number])
    assert not (tmp_path / "more").exists()
    assert kinds(silo).count("reserve") == number
    # What was released before may be had again, though nothing is left.
    assert release(silo, tmp_path / "again").again


def test_while_another_process_holds_the_ledger_nothing_leaves(merchant, tmp_path):
    with Ledger(merchant.path / "ledger.db"), pytest.raises(LedgerError, match="another process"):
        release(merchant, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "wrong", [torch.full((9,), float("nan")), torch.zeros(8), torch.full((9,), 1e6)]
)
def test_what_is_not_as_declared_stays_and_its_cost_is_spent(
    merchant, tmp_path, monkeypatch, wrong
):
    monkeypatch.setattr(client.centroids, "noised_centroids", lambda *_: wrong)
    with pytest.raises(EgressError):
        release(merchant, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert "release" not in kinds(merchant)
    assert kinds(merchant).count("reserve") == 1


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(folder, out, owner, name):
    torch.set_num_threads(1)
    setattr(owner, name, _die)
    release_centroids(folder, PLAN, task=SEGMENT.name, as_of=DATE, out=out)


@pytest.mark.parametrize(
    ("owner", "name", "left", "charged_again"),
    [
        # The charge is on disk; nobody was looked at yet.
        (client.centroids._Release, "_points", False, True),
        (client.centroids, "noised_centroids", False, True),
        # The release is on disk, and its file is not.
        (client.centroids, "write_file", False, False),
        # The file is there; the ledger does not know that it is.
        (client.centroids.Gate, "handed_over", True, False),
    ],
)
def test_a_kill_between_leaves_nothing_uncharged(
    merchant, tmp_path, owner, name, left, charged_again
):
    out = tmp_path / "c"
    process = multiprocessing.get_context("fork").Process(
        target=_dying, args=(merchant.path, out, owner, name)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert out.exists() == left
    content = out.read_bytes() if left else None
    spent = verify(merchant.path / "ledger.db").epsilon
    assert spent == pytest.approx(epsilon_spent([PLAN.event], delta=1e-4))
    found = release(merchant, out)
    assert found.again != charged_again
    assert kinds(merchant).count("reserve") == 1 + charged_again
    assert (found.spent > spent) == charged_again
    assert content is None or out.read_bytes() == content
    assert kinds(merchant)[-1] == "settle"


def test_a_file_that_cannot_be_written_is_said_and_had_again(merchant, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        release(merchant, tmp_path / "file" / "c")
    assert release(merchant, tmp_path / "c").again


def test_an_adapter_that_nobody_sent_is_never_used(silo, tmp_path):
    take_part(silo.path, sent=False)
    exported(SEGMENT, silo.path / "local" / SEGMENT.name)
    with pytest.raises(ModelError, match="holds no adapter"):
        release(silo, tmp_path / "c")
    take_part(silo.path)
    release(silo, tmp_path / "c")
    (sent,) = (silo.path / "adapters").glob("*.safetensors")
    digest = hashlib.sha256(hashlib.sha256(sent.read_bytes()).digest()).hexdigest()
    assert read(tmp_path / "c")[1]["adapter_sha256"] == digest
