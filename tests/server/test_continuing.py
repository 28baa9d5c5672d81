"""Jobs that start from the adapter of an earlier one, and what is kept of it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from server.rounds import RoundOptions, run_job
from server.run_store import RunStore
from server.starts import start_of
from silotune.errors import ConfigError
from silotune.federation import build_model, read_federation
from simulations.inline_engine import InlineGrid, run_inline

KEEP = 0.3


@pytest.fixture(scope="module")
def first(small_federation, tmp_path_factory):
    """A federation after the rounds of its one job."""
    state = tmp_path_factory.mktemp("first")
    path = small_federation(state, "numeric")
    run_inline(path, 3)
    federation = read_federation(path)
    model = build_model(federation.models, "numeric", federation.task)
    last = RunStore(state / "rounds" / "numeric", model.layout.digest).load(1)
    return federation, model, last


def run(first, folder, job, start):
    federation, model, _ = first
    folder.mkdir(exist_ok=True)
    path = folder / "federation.json"
    replace(federation, jobs=(job,), state=str(folder)).save(path)
    store = RunStore(folder / "store", model.layout.digest)
    options = RoundOptions(nodes=3)
    return run_job(InlineGrid(3, path), job, model, store, options, start_D=start), store


def test_a_job_starts_from_an_earlier_one_by_its_name_or_its_path(first, tmp_path):
    federation, model, last = first
    rounds = tmp_path.joinpath(federation.state) / "rounds"
    job = replace(federation.jobs[0], name="second", start="numeric")
    assert start_of(replace(job, start=None), model, rounds) is None
    assert torch.equal(start_of(job, model, rounds), last)
    by_path = replace(job, start=str(rounds / "numeric" / "round-0000.safetensors"))
    found = start_of(by_path, model, rounds)
    assert not torch.equal(found, last)
    assert found.shape == last.shape


def test_what_a_start_must_be_is_said(first, tmp_path):
    federation, model, last = first
    rounds = tmp_path.joinpath(federation.state) / "rounds"
    for start, words in (("nowhere", "no such file"), ("../rounds", "no such file")):
        job = replace(federation.jobs[0], start=start)
        with pytest.raises(ConfigError, match=f"job 'numeric': start: .*{words}"):
            start_of(job, model, rounds)
    save_file({"flat": last}, tmp_path / "other.safetensors", {"layout": "x", "base_digest": "y"})
    with pytest.raises(ConfigError, match="is for base model"):
        start_of(replace(federation.jobs[0], start=f"{tmp_path}/other.safetensors"), model, rounds)
    with pytest.raises(ConfigError, match="keep_start is 1"):
        replace(federation.jobs[0], start="numeric", keep_start=1.0)
    with pytest.raises(ConfigError, match="needs a start"):
        replace(federation.jobs[0], keep_start=0.5)


def test_the_share_that_is_kept_is_put_back_after_each_round(first, tmp_path):
    federation, _, last = first
    job = replace(federation.jobs[0], rounds=1, start="x")
    ahead, _ = run(first, tmp_path / "free", job, last)
    assert not torch.equal(ahead, last)
    kept, _ = run(first, tmp_path / "kept", replace(job, keep_start=KEEP), last)
    assert torch.allclose(kept, KEEP * last + (1 - KEEP) * ahead, atol=1e-6)
    # From zero it ends elsewhere.
    anew, _ = run(first, tmp_path / "anew", job, None)
    assert not torch.allclose(anew, ahead, atol=1e-3)


def test_more_kept_stays_nearer_over_many_rounds(first, tmp_path):
    federation, _, last = first
    moved = []
    for keep in (0.0, 0.3, 0.8):
        job = replace(federation.jobs[0], rounds=4, start="x", keep_start=keep)
        found, _ = run(first, tmp_path / f"{keep}", job, last)
        moved.append(float((found - last).norm()))
    assert moved[0] > 1.2 * moved[1] > 1.2 * 1.2 * moved[2] > 0


def test_a_killed_run_goes_on_from_the_start_it_had(first, tmp_path):
    federation, _, last = first
    job = replace(federation.jobs[0], start="x", keep_start=KEEP, server_momentum=0.5)
    whole, store = run(first, tmp_path / "a", job, last)
    (store.folder / "round-0001.safetensors").unlink()
    # What the start was made of has moved on since.
    again, _ = run(first, tmp_path / "a", job, torch.zeros_like(last))
    assert torch.equal(whole, again)
