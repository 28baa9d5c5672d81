import json
import logging
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.prepared import load_or_prepare
from privacy.ledger import Ledger
from server.run_store import RunStore
from silotune.federation import Job, build_model, read_federation
from silotune.tables.silo_folder import SiloFolder
from simulations.flower_engine import _quiet_once_interrupted
from simulations.inline_engine import run_inline
from simulations.private_metrics import records_of

MEASURED = Job(
    name="measured",
    model="numeric",
    rounds=2,
    private={
        "clip_norm": 2.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.5,
        "examples_per_user": 8,
        "steps": 2,
        "learning_rate": 0.5,
    },
    epsilon=60.0,
    metrics={"noise_multiplier": 0.4, "bins": 5, "negative_weight": 0.3},
)


def _error_bars_hold(path):
    """Metrics of the sums, where they can be told from noise, lie where the scores say."""
    federation = read_federation(path)
    model = build_model(federation.models, "numeric", federation.task)
    store = RunStore(path.parent / "rounds" / "measured", model.layout.digest)
    model.load_adapter(store.load(1))
    silos = []
    for folder in federation.silos:
        data = load_or_prepare(SiloFolder.open(Path(folder)), federation.task, model)
        logits = data.scores(model, data.examples.rows(test=True))[:, 0]
        silos.append((data.examples, logits))
    found = {r["metric"]: r for r in records_of(store.metrics(1), silos)}
    for name in ("auc", "accuracy", "log_loss", "positive_rate"):
        r = found[name]
        assert math.isfinite(r["value"]), name
        assert r["noiseless_low"] - 4 * r["low_error"] <= r["low"], name
        assert r["high"] <= r["noiseless_high"] + 4 * r["high_error"], name
        assert abs(r["value"] - r["noiseless"]) <= 4 * r["standard_error"], name
        assert 0 < r["standard_error"] < 0.2, name
    return found


def _adapter(path, job):
    federation = read_federation(path)
    wanted = next(j for j in federation.jobs if j.name == job)
    model = build_model(federation.models, wanted.model, federation.task)
    store = RunStore(path.parent / "rounds" / job, model.layout.digest)
    return store.load(wanted.rounds - 1)


def _run_flower(path):
    # A process of its own: Ray stays in the process that started it.
    code = (
        "import sys; from pathlib import Path; from simulations.flower_engine import run_flower;"
        "run_flower(Path(sys.argv[1]), 3, workers=2)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_both_engines_give_the_same_numbers_without_noise(small_federation, tmp_path):
    inline, flower = tmp_path / "inline", tmp_path / "flower"
    inline.mkdir()
    flower.mkdir()
    here = small_federation(inline, "plain", "numeric")
    run_inline(here, 3)
    there = small_federation(flower, "plain", "numeric", MEASURED)
    done = _run_flower(there)
    assert done.returncode == 0, done.stderr
    _error_bars_hold(there)
    for job in ("plain", "numeric"):
        ours, theirs = _adapter(here, job), _adapter(there, job)
        assert ours.abs().max() > 1e-2
        # Not bit for bit: products are split over another number of threads in a worker, and
        # float32 sums then round differently; 30 steps carry that to the fifth digit.
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_rounds_in_fewer_bits_end_near_those_in_float32(small_federation, tmp_path, encoding):
    found, sent = {}, {}
    for how in ("float32", encoding):
        state = tmp_path / how
        state.mkdir()
        job = replace(MEASURED, name=how, encoding=how)
        path = small_federation(state, job, noise_seed=5)
        run_inline(path, 3)
        found[how] = _adapter(path, how)
        federation = read_federation(path)
        model = build_model(federation.models, "numeric", federation.task)
        records = list(RunStore(state / "rounds" / how, model.layout.digest).records())
        assert [(r["replies"], r["failures"]) for r in records] == [(3, 0), (3, 0)]
        sent[how] = records[0]["bytes_up"]
    apart = (found[encoding] - found["float32"]).abs().max()
    assert 0 < apart < 0.05 * found["float32"].abs().max()
    assert sent[encoding] < sent["float32"]


@pytest.mark.slow
def test_an_error_of_a_silo_reaches_the_caller_in_words(small_federation, tmp_path):
    path = small_federation(tmp_path, "plain")
    path.write_text(path.read_text().replace("merchant-", "nowhere-"))
    done = _run_flower(path)
    assert done.returncode != 0
    assert "0 of 3 updates arrived" in done.stderr


def test_a_private_job_charges_every_silo_for_every_round(small_federation, tmp_path):
    path = small_federation(tmp_path, "private", noise_seed=5)
    run_inline(path, 3)
    ledgers = sorted((tmp_path / "ledgers" / "private").glob("*.db"))
    assert len(ledgers) == 3
    for path in ledgers:
        with Ledger(path) as ledger:
            assert [e.steps for e in ledger.events()] == [2, 2]


def test_seeded_noise_repeats_a_run_and_secure_noise_does_not(small_federation, tmp_path):
    adapters = []
    for name, seed in (("a", 5), ("b", 5), ("c", None), ("d", None)):
        folder = tmp_path / name
        folder.mkdir()
        path = small_federation(folder, "private", noise_seed=seed)
        run_inline(path, 3)
        adapters.append(_adapter(path, "private"))
    assert torch.equal(adapters[0], adapters[1])
    assert not torch.equal(adapters[2], adapters[3])


def test_metrics_come_out_within_their_error_bars_are_charged_once_and_asked_once(
    small_federation, tmp_path
):
    path = small_federation(tmp_path, MEASURED)
    run_inline(path, 3)
    found = _error_bars_hold(path)
    assert found["auc"]["replies"] == 3
    stored = tmp_path / "rounds" / "measured" / "metrics-0001.json"
    first = json.loads(stored.read_text())["sum"]

    def charges():
        for ledger_path in sorted((tmp_path / "ledgers" / "measured").glob("*.db")):
            with Ledger(ledger_path) as ledger:
                yield [(e.noise_multiplier, e.steps) for e in ledger.events()]

    assert list(charges()) == [[(1.0, 2), (1.0, 2), (0.4, 1)]] * 3
    run_inline(path, 3)
    assert list(charges()) == [[(1.0, 2), (1.0, 2), (0.4, 1)]] * 3
    # An aggregator killed before it had stored them asks again, and gets the same releases.
    stored.unlink()
    run_inline(path, 3)
    assert json.loads(stored.read_text())["sum"] == first
    assert list(charges()) == [[(1.0, 2), (1.0, 2), (0.4, 1)]] * 3


def test_what_flower_says_of_workers_after_an_interruption_is_not_told(caplog, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    logger = logging.getLogger("flwr")
    level = logger.level
    # It keeps its records from the root, where they are caught.
    monkeypatch.setattr(logger, "propagate", True)
    logger.setLevel(logging.ERROR)

    @_quiet_once_interrupted()
    def interrupted():
        logger.error("a worker failed")
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            logger.error("a worker was ended")

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        logger.setLevel(level)
    assert [r.message for r in caplog.records] == ["a worker failed"]
    assert signal.getsignal(signal.SIGINT) is before
