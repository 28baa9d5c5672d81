"""One adapter per task in one federation: the same users pay for all of them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from client.config import ClientConfig
from client.daemon import load
from client.prepared import load_or_prepare
from client.worker import Worker, ledger_of
from privacy.accounting import epsilon_spent
from privacy.ledger import Ledger, events_of
from server.run_store import RunStore
from silotune.errors import BudgetError, ConfigError, MessageError, PolicyError
from silotune.federation import Job, build_model, model_for, read_federation
from silotune.invitation import Invitation
from silotune.messages import TrainRequest
from silotune.models.text_model import ModelConfig
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import own_settings
from silotune.tasks.several import SeveralTasks
from silotune.toml_text import toml_text
from simulations.inline_engine import run_inline
from tests.client.scoring import CHURN as SCORED_CHURN
from tests.client.scoring import SEGMENT as SCORED_SEGMENT
from tests.tasks.test_several_heads import BOTH, CHURN, SEGMENT

PRIVATE = {
    "clip_norm": 2.0,
    "noise_multiplier": 1.5,
    "sampling_rate": 0.5,
    "examples_per_user": 8,
    "steps": 2,
    "learning_rate": 0.5,
}
CHURN_JOB = Job(
    name="churn",
    task=CHURN.name,
    account="all",
    model="numeric",
    rounds=2,
    private=PRIVATE,
    epsilon=20.0,
)
SEGMENT_JOB = replace(CHURN_JOB, name="segment", task=SEGMENT.name)


@pytest.fixture(scope="module")
def federation(small_federation, tmp_path_factory):
    """Promotions, churn and segment in one federation file, after the rounds of two jobs."""
    state = tmp_path_factory.mktemp("tasks")
    path = small_federation(state, CHURN_JOB, SEGMENT_JOB, tasks=(CHURN, SEGMENT))
    run_inline(path, 3)
    return read_federation(path)


def adapter(federation, job):
    model = build_model(federation.models, job.model, federation.task_of(job))
    folder = Path(federation.state) / "rounds" / job.name
    return RunStore(folder, model.layout.digest).load(job.rounds - 1)


def spent(path, delta):
    with Ledger(path) as ledger:
        reserved = [e for e in ledger.entries if e.kind == "reserve"]
    return epsilon_spent(events_of(reserved), delta=delta), reserved


def test_each_task_gets_an_adapter_and_one_ledger_composes_both(federation):
    sizes = {j.name: len(adapter(federation, j)) for j in (CHURN_JOB, SEGMENT_JOB)}
    # Three classes have three rows of weights.
    assert sizes["segment"] == 3 * sizes["churn"]
    assert all(adapter(federation, j).norm() > 0 for j in (CHURN_JOB, SEGMENT_JOB))
    for silo in federation.silos:
        name = SiloFolder.open(Path(silo)).info.name
        path = ledger_of(federation, CHURN_JOB, name)
        assert path == ledger_of(federation, SEGMENT_JOB, name)
        both, reserved = spent(path, federation.delta)
        assert [e.body["what"]["task"] for e in reserved] == 2 * [CHURN.name] + 2 * [SEGMENT.name]
        halves = [
            epsilon_spent(events_of(part), delta=federation.delta)
            for part in (reserved[:2], reserved[2:])
        ]
        whole = epsilon_spent(events_of(reserved), delta=federation.delta)
        # The composition: more than either, less than their sum.
        assert both == whole
        assert max(halves) < both < sum(halves)


def test_the_second_task_is_refused_when_the_first_has_spent_the_budget(federation, tmp_path):
    events = spent(
        ledger_of(federation, CHURN_JOB, SiloFolder.open(Path(federation.silos[0])).info.name),
        federation.delta,
    )[1]
    one = epsilon_spent(events_of(events[:1]), delta=federation.delta)
    two = epsilon_spent(events_of(events[:2]), delta=federation.delta)
    tight = (one + two) / 2
    jobs = tuple(replace(j, epsilon=tight) for j in (CHURN_JOB, SEGMENT_JOB))
    worker = Worker(replace(federation, jobs=jobs, state=str(tmp_path)))
    for job in jobs:
        model = worker.model(job.model, job)
        request = TrainRequest(
            job=job.name,
            round=0,
            task=federation.task_of(job).name,
            model=job.model,
            base_digest=model.base_digest,
            layout_digest=model.layout.digest,
            private=PRIVATE,
        )
        with worker.silo(0, job, 0) as silo:
            if job is jobs[0]:
                silo.train(request, model.adapter(), model)
                continue
            before = len(silo.ledger.entries)
            with pytest.raises(BudgetError):
                silo.train(request, model.adapter(), model)
            assert len(silo.ledger.entries) == before
    # In an account of its own it would have been inside.
    with worker.silo(0, replace(jobs[1], account=None), 0) as silo:
        silo.train(request, model.adapter(), model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": ()}, "task 'customer-churn' is not of this federation"),
        ({"tasks": (CHURN, CHURN)}, "not all different"),
        ({"jobs": (CHURN_JOB, replace(SEGMENT_JOB, epsilon=3.0))}, "share one budget"),
    ],
)
def test_a_federation_that_does_not_fit_together_is_refused(federation, change, words):
    with pytest.raises(ConfigError, match=words):
        replace(federation, **change)


def test_a_file_from_before_there_were_several_tasks_is_read(federation, tmp_path):
    new = {"task", "account", "start", "keep_start"}
    raw = json.loads(json.dumps(asdict(federation), default=str))
    del raw["tasks"]
    raw["jobs"] = [{k: v for k, v in j.items() if k not in new} for j in raw["jobs"]]
    path = tmp_path / "federation.json"
    path.write_text(json.dumps(raw))
    found = read_federation(path)
    assert found.task == federation.task
    assert found.tasks == ()
    assert found.task_of(found.jobs[0]) == found.task
    assert ledger_of(found, found.jobs[0], "m").parent.name == "churn"


def test_a_federation_of_heads_comes_back_from_its_file(federation, tmp_path):
    several = replace(federation, task=BOTH, tasks=(CHURN,), jobs=(CHURN_JOB,))
    several.save(tmp_path / "f.json")
    assert read_federation(tmp_path / "f.json") == several


def taking_part(silo, **policy):
    server = Invitation(name="a", address="a:1", certificate_sha256="0" * 64, ca="x")
    settings = ClientConfig(
        server=server,
        task=asdict(SCORED_CHURN),
        tasks=(asdict(SCORED_SEGMENT),),
        model={"use_text": False},
    )
    (silo.path / "client.toml").write_text(toml_text(asdict(settings)))
    limits = {
        "epsilon": 20.0,
        "delta": 1e-3,
        "base_digests": ["none"],
        "servers": [server.identity],
        "tasks": [SCORED_CHURN.name, SCORED_SEGMENT.name],
    }
    (silo.path / "policy.toml").write_text(toml_text(limits | policy))
    return load(silo.path)


def request_to(place, task, model):
    what = TrainRequest(
        job=f"job-{task}",
        round=0,
        task=task,
        model="text",
        base_digest="none",
        layout_digest=model.layout.digest,
        private=PRIVATE,
    )
    with place.open(what) as (silo, own):
        return silo.train(what, torch.zeros(model.layout.size), own)


def test_a_daemon_with_two_tasks_charges_both_to_one_ledger_and_refuses_the_rest(silo):
    place = taking_part(silo)
    with place.silo:
        further, model = place.further[SCORED_SEGMENT.name]
        assert further.ledger is place.silo.ledger
        assert place.message_limit > 4 * model.layout.size
        request_to(place, SCORED_CHURN.name, place.model)
        request_to(place, SCORED_SEGMENT.name, model)
        reserved = [e for e in place.silo.ledger.entries if e.kind == "reserve"]
        assert [e.body["what"]["task"] for e in reserved] == [
            SCORED_CHURN.name,
            SCORED_SEGMENT.name,
        ]
        # The model of one task under the name of the other, and a task that is not there.
        with pytest.raises(MessageError, match="adapter layout"):
            request_to(place, SCORED_SEGMENT.name, place.model)
        with pytest.raises(PolicyError, match="task"):
            request_to(place, "discount-depth", place.model)
        assert len([e for e in place.silo.ledger.entries if e.kind == "reserve"]) == 2


def test_a_daemon_with_two_tasks_refuses_the_second_when_the_budget_is_out(silo):
    place = taking_part(silo)
    with place.silo:
        request_to(place, SCORED_CHURN.name, place.model)
        events = events_of([e for e in place.silo.ledger.entries if e.kind == "reserve"])
        used = epsilon_spent(events, delta=1e-3)
    place = taking_part(silo, epsilon=1.1 * used)
    with place.silo, pytest.raises(BudgetError):
        request_to(place, SCORED_SEGMENT.name, place.further[SCORED_SEGMENT.name][1])


def test_a_policy_that_lists_one_task_refuses_the_other(silo):
    place = taking_part(silo, tasks=[SCORED_CHURN.name])
    with place.silo, pytest.raises(PolicyError, match="customer-segment"):
        request_to(place, SCORED_SEGMENT.name, place.further[SCORED_SEGMENT.name][1])


def test_own_settings_of_each_of_several_tasks_make_the_examples_anew(silo):
    both = SeveralTasks(tasks=(SCORED_CHURN, SCORED_SEGMENT))
    model = model_for(ModelConfig(use_text=False), both)
    for number, name in enumerate((SCORED_CHURN.name, SCORED_SEGMENT.name), 1):
        own = own_settings(silo, name)
        own.parent.mkdir(exist_ok=True)
        own.write_text("")
        load_or_prepare(silo, both, model)
        assert len(list((silo.path / "cache").glob("examples-*.npz"))) == number
