"""Whole comparisons, small and without text: several heads, and going on on newer weeks."""

import re
import shutil

import duckdb
import pytest

from silotune.errors import ConfigError
from silotune.federation import read_federation
from silotune.tables.synthetic import SyntheticConfig, generate
from simulations.apart import HISTORY, TASKS, WEEKS, part_tables
from simulations.compare import Comparison
from simulations.progress import Stages
from simulations.report import write_report
from simulations.run_folder import RunFolder
from simulations.scenario import load_scenario, scenario_names

COMMON = """
name = "small"
description = "two small merchants"
engine = "{engine}"
workers = 1
{task}
[data]
source = "folder"
path = "{silos}"
minimum_users = 15
[model]
use_text = false
[federated]
rounds = 2
[privacy]
epsilons = [8.0]
delta = 1e-3
rounds = 1
steps = 2
[local]
epochs = 1
pooled_epochs = 1
"""
SEVERAL = """
[[task.tasks]]
name = "customer-churn"
first = 2024-01-22T00:00:00
split = 2024-04-01T00:00:00
last = 2024-05-20T00:00:00
horizon_days = 7
[[task.tasks]]
name = "customer-segment"
first = 2024-01-22T00:00:00
split = 2024-04-01T00:00:00
last = 2024-05-20T00:00:00
horizon_days = 7
at_risk_below = 5.0
high_value_from = 40.0
"""
CONTINUED = """
[task]
name = "customer-churn"
first = 2024-01-22T00:00:00
split = 2024-02-26T00:00:00
last = 2024-03-18T00:00:00
horizon_days = 7
step_days = 7
active_days = 14
[continued]
first = 2024-03-18T00:00:00
split = 2024-04-22T00:00:00
last = 2024-05-20T00:00:00
rounds = 2
keeps = [0.0, 0.5]
"""


@pytest.fixture(scope="module")
def silos(tmp_path_factory):
    """Two merchants."""
    silos = tmp_path_factory.mktemp("silos") / "silos"
    generate(SyntheticConfig(merchants=2, users_per_merchant=60, weeks=20, seed=3), silos)
    return silos


@pytest.fixture(scope="module")
def ran(silos, tmp_path_factory):
    """A function that runs a comparison, and returns its folder."""

    def run(task, engine="inline", silos=silos):
        folder = tmp_path_factory.mktemp("run")
        path = folder / "small.toml"
        path.write_text(COMMON.format(task=task, engine=engine, silos=silos))
        scenario = load_scenario(str(path))
        out = RunFolder.create(folder / "out", {"name": "small"})
        Comparison(scenario, out, folder, Stages(None)).run()
        out.finish("finished")
        return out

    return run


@pytest.mark.slow
def test_a_scenario_of_several_heads_reports_and_exports_each_task(ran):
    run = ran(SEVERAL)
    tables = {t.by: t for t in part_tables(run.records())}
    assert set(tables) == {TASKS, HISTORY}
    arms = {arm.name for arm, _ in tables[TASKS].rows}
    assert {"rfm-rules", "local-only", "federated", "federated-eps8", "pooled"} <= arms
    assert tables[TASKS].columns == ("AUC, customer-churn", "AUC, customer-segment")
    assert all(values[0] is not None for _, values in tables[TASKS].rows)
    assert run.info.main.name == "Mean AUC of the tasks"
    spent = [r["epsilon"] for r in run.records() if r["kind"] == "privacy"]
    assert spent
    assert all(0 < e <= 8 for e in spent)
    for name in ("customer-churn", "customer-segment"):
        assert (run.path / "adapters" / "federated-seed0" / name / "silotune.json").is_file()
    page = write_report(run).read_text()
    assert "Each task</h2>" in page
    assert "Customers with little history</h2>" in page


@pytest.fixture(scope="module")
def shrunk(silos, tmp_path_factory):
    """Three merchants: the third has lost nearly all customers in the newer weeks."""
    found = tmp_path_factory.mktemp("shrunk") / "silos"
    shutil.copytree(silos, found, ignore=shutil.ignore_patterns("cache"))
    third = found / "merchant-0003"
    shutil.copytree(found / "merchant-0002", third)
    about = (third / "silo.toml").read_text().replace("merchant-0002", "merchant-0003")
    (third / "silo.toml").write_text(about)
    events = third / "events.parquet"
    with duckdb.connect() as con:
        con.execute(f"CREATE TABLE events AS SELECT * FROM '{events}'")
        con.execute("CREATE TABLE kept AS SELECT DISTINCT user_id FROM events ORDER BY 1 LIMIT 8")
        con.execute(
            "COPY (SELECT * FROM events WHERE time < '2024-03-04' OR user_id IN (FROM kept) "
            f"ORDER BY user_id, time) TO '{events}' (FORMAT parquet)"
        )
    return found


@pytest.mark.slow
def test_a_scenario_that_goes_on_says_what_it_forgot(ran, shrunk):
    run = ran(CONTINUED, silos=shrunk)
    (table,) = [t for t in part_tables(run.records()) if t.by == WEEKS]
    assert {arm.name for arm, _ in table.rows} == {
        "federated",
        "continued-keep0",
        "continued-keep0.5",
        "anew",
    }
    assert all(value is not None for _, values in table.rows for value in values)
    page = write_report(run).read_text()
    assert re.search(r"Going on: (gains|loses) [\d.]+ AUC on the newer weeks, and", page)
    # Who is too small on the newer weeks takes no part in them.
    older = run.path / "state" / "seed-0" / "federation.json"
    newer = older.parent / "continued" / "federation.json"
    assert [len(read_federation(path).silos) for path in (older, newer)] == [3, 2]
    assert {r["merchant"] for r in of_weeks(run)} == {"merchant-0001", "merchant-0002"}
    # On the workers of a pool, those of each file apart: the same figures.
    assert of_weeks(ran(CONTINUED, engine="pool", silos=shrunk)) == of_weeks(run)


def of_weeks(run):
    return [r for r in run.records() if r["kind"] == "part" and r["by"] == WEEKS]


def test_the_scenarios_that_come_with_it_are_read(tmp_path):
    assert {"several", "continued"} <= set(scenario_names())
    assert load_scenario("several").task.name == "customer-churn+customer-segment"
    continued = load_scenario("continued")
    assert continued.continued.first >= continued.task.last
    path = tmp_path / "x.toml"
    early = CONTINUED.replace("first = 2024-03-18", "first = 2024-03-11")
    path.write_text(COMMON.format(task=early, engine="pool", silos="s"))
    with pytest.raises(ConfigError, match="older test rows would be trained on"):
        load_scenario(str(path))
