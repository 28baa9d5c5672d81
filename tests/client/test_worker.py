import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import client.worker
from client.worker import Worker, worker_for
from silotune.federation import read_federation
from silotune.tables.silo_folder import SiloFolder
from simulations.inline_engine import run_inline
from tests.tasks.test_several_heads import CHURN, SEGMENT


@pytest.fixture
def run(small_federation, tmp_path, monkeypatch):
    """Run three rounds on copies of silos as a fresh process would; return what it did."""
    original = read_federation(small_federation(tmp_path, "plain"))
    silos = []
    for silo in original.silos[:2]:
        copy = tmp_path / "silos" / Path(silo).name
        shutil.copytree(silo, copy, ignore=shutil.ignore_patterns("cache"))
        silos.append(str(copy))

    def run(name, **changes):
        monkeypatch.setattr(client.worker, "_workers", {})
        state = tmp_path / name
        state.mkdir()
        task = replace(original.task, positives=1, negatives=1, test_negatives=1)
        jobs = (replace(original.jobs[0], rounds=3),)
        federation = replace(
            original, task=task, silos=tuple(silos), state=str(state), jobs=jobs, **changes
        )
        federation.save(state / "federation.json")
        run_inline(state / "federation.json", len(silos))
        return worker_for(state / "federation.json"), state

    return run


def test_later_rounds_load_nothing_and_a_second_run_starts_from_the_stored_cache(run):
    first, state = run("first")
    examples = sum(len(data.examples) for data in first._data.values())
    texts = sum(len(set(data.start_E.tolist())) for data in first._data.values())
    # Three rounds at two silos: as much as one.
    assert first.work.models_loaded == 1
    assert first.work.texts_tokenised == examples > 0
    assert first.work.texts_run == texts > 0
    log = (state / "silos.log").read_text()
    assert log.count('"prefix cache", "on": true') == 2
    assert "4 passes expected" in log
    assert str(examples) not in log

    second, _ = run("second")
    assert second.work.models_loaded == 1
    assert second.work.texts_tokenised == second.work.texts_run == 0

    models = {"text": replace(first.federation.models["text"], prefix_cache="off")}
    third, state = run("third", models=models)
    assert third.work.texts_run == 0
    assert all(data.stored_NH is None for data in third._data.values())
    assert (state / "silos.log").read_text().count('"on": false') == 2


def test_a_worker_keeps_no_more_than_it_may_and_computes_nothing_twice(run):
    first, _ = run("first")
    folders = [SiloFolder.open(Path(s)) for s in first.federation.silos]
    everything = sum(data.nbytes for data in first._data.values())
    assert everything > max(data.nbytes for data in first._data.values())
    small = Worker(first.federation, keep_bytes=everything - 1)
    for _ in range(3):
        for folder in folders:
            small.data(folder, "text")
            assert sum(data.nbytes for data in small._data.values()) < everything
    # The last one stays, whatever its size.
    none = Worker(first.federation, keep_bytes=0)
    assert none.data(folders[0], "text") is none.data(folders[0], "text")
    for worker in (small, none):
        assert worker.work.texts_tokenised == worker.work.texts_run == 0


def test_a_changed_file_keeps_what_is_loaded_unless_any_of_its_tasks_is_another(
    small_federation, tmp_path
):
    path = small_federation(tmp_path, "numeric", tasks=(CHURN, SEGMENT))
    federation = read_federation(path)
    job = replace(federation.jobs[0], task=CHURN.name)

    def written(**changes):
        replace(federation, **changes).save(path)
        return worker_for(path)

    first = written(jobs=(job,))
    churn = first.model(job.model, job)
    # Other silos, and a further job on the federation's own task.
    further = replace(job, name="further", task=None)
    again = written(jobs=(job, further), silos=federation.silos[:1])
    assert again is first
    assert again.model(job.model, job) is churn
    assert again.federation.silos == federation.silos[:1]
    longer = replace(SEGMENT, horizon_days=21)
    for changes in (
        {"jobs": (replace(job, task=SEGMENT.name),)},
        {"jobs": (job,), "tasks": (CHURN, longer)},
        {"jobs": (job,), "tasks": (CHURN,)},
        {"jobs": (job,), "task": longer, "tasks": (CHURN,)},
    ):
        before, new = worker_for(path), written(**changes)
        assert new is not before
        assert not new.models
        (own,) = new.federation.jobs
        assert new.model(own.model, own).outputs == new.federation.task_of(own).outputs


def test_in_a_circle_of_silos_some_stay_loaded(small_federation, tmp_path):
    worker = Worker(read_federation(small_federation(tmp_path, "numeric")))
    folders = [SiloFolder.open(Path(s)) for s in worker.federation.silos]
    sizes = [worker.data(folder, "numeric").nbytes for folder in folders]
    few = Worker(worker.federation, keep_bytes=sum(sizes) - 1)
    last, kept = {}, []
    for _ in range(4):
        for folder in folders:
            data = few.data(folder, "numeric")
            kept.append(data is last.get(folder.path))
            last[folder.path] = data
    # The first circle loads; of the others every second one is there, where with the oldest let
    # go none would be.
    assert not any(kept[:3])
    assert sum(kept[3:]) >= 4
