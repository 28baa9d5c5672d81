import subprocess
import sys

import pytest
import torch

from privacy.ledger import Ledger
from server.run_store import RunStore
from silotune.federation import build_model, read_federation
from simulations.inline_engine import run_inline


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
    there = small_federation(flower, "plain", "numeric")
    done = _run_flower(there)
    assert done.returncode == 0, done.stderr
    for job in ("plain", "numeric"):
        ours, theirs = _adapter(here, job), _adapter(there, job)
        assert ours.abs().max() > 1e-2
        # Not bit for bit: products are split over another number of threads in a worker, and
        # float32 sums then round differently; 30 steps carry that to the fifth digit.
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


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
