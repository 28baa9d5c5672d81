"""Parts of the test rows: by task, and by how much is known of a customer."""

import datetime as dt
import re

import numpy as np
import pytest

from silotune.tables.silo_folder import list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.tasks.apart import FEW_VISITS, has_history
from silotune.tasks.item_interest import ItemInterest
from silotune.tasks.promotion_response import PromotionResponse
from silotune.tasks.several import SeveralTasks
from simulations.apart import HISTORY, TASKS, part_tables, parts_of_test
from simulations.baselines import METHODS
from simulations.report import write_report
from simulations.several import by_simple_method
from tests.tasks.test_several_heads import BOTH, CHURN, SEGMENT, SPAN


@pytest.fixture(scope="module")
def silos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart") / "silos"
    generate(SyntheticConfig(merchants=2, users_per_merchant=40, weeks=20, seed=3), folder)
    return list_silos(folder)


def test_parts_by_history_are_the_metrics_of_those_rows_and_no_others(silos):
    examples = CHURN.build(silos[0])
    test = examples.rows(test=True)
    logits = np.random.default_rng(0).normal(size=(len(test), 1))
    little, others = parts_of_test(CHURN, examples, logits)
    assert (little["by"], little["part"], others["part"]) == (
        HISTORY,
        "little history",
        "the others",
    )
    # Counted again from the tables: the rows that build made.
    rows = CHURN._rows(silos[0])
    few = np.array([rows[r]["visits"] < FEW_VISITS for r in test])
    assert 0 < few.sum() < len(few)
    for part, kept in ((little, few), (others, ~few)):
        expected = CHURN.objective.quality(
            examples.label_EK[test][kept], logits[kept], examples.visit_E[test][kept]
        )
        assert {k: part[k] for k in expected} == pytest.approx(expected, nan_ok=True)
        assert part["rows"] == kept.sum()


def test_tasks_that_count_no_visits_have_no_such_parts(silos):
    task = PromotionResponse(**SPAN, category_level=2, train_visits=1, test_visits=1)
    assert has_history(task) is None
    assert has_history(ItemInterest(**SPAN)) == "cold_start"
    examples = task.build(silos[0])
    logits = np.zeros((len(examples.rows(test=True)), 1))
    assert list(parts_of_test(task, examples, logits)) == []


def test_the_simple_method_of_each_task_sees_its_own_rows_alone(silos):
    built = [BOTH.build(s) for s in silos]
    assert BOTH.simple_methods == ("rfm-rules", "logistic-local", "logistic-pooled")
    found = by_simple_method(BOTH, METHODS["rfm-rules"], built)
    for silo, examples, logits in zip(silos, built, found, strict=True):
        rows = examples.rows(test=True)
        for number, task in enumerate(BOTH.tasks):
            own = BOTH.objective.rows_of(number, examples.label_EK[rows])
            alone = METHODS["rfm-rules"]([task.build(silo)])[0]
            assert np.allclose(logits[own][:, BOTH.objective.columns(number)], alone)
        parts = list(parts_of_test(BOTH, examples, logits))
        tasks = {p["part"]: p for p in parts if p["by"] == TASKS}
        assert set(tasks) == {CHURN.name, SEGMENT.name}
        whole = BOTH.objective.quality(examples.label_EK[rows], logits, examples.visit_E[rows])
        for name, part in tasks.items():
            assert part["auc"] == pytest.approx(whole[f"{name}: auc"], nan_ok=True)
        assert {p["part"] for p in parts if p["by"] == HISTORY} == {
            f"{task.name}, {part}"
            for task in BOTH.tasks
            for part in ("little history", "the others")
        }


def test_methods_that_a_task_lacks_are_not_run():
    span = SPAN | {"last": dt.datetime.fromisoformat("2024-06-20")}
    mixed = SeveralTasks(tasks=(CHURN, ItemInterest(**span)))
    assert set(mixed.simple_methods) <= set(CHURN.simple_methods)
    assert "rfm-rules" not in mixed.simple_methods


def test_the_report_has_a_table_for_each_division(made_up_run):
    run = made_up_run(merchants=2, seeds=1, arms=("popularity", "federated"))
    names = [m.name for m in run.info.merchants]
    for arm, value in (("popularity", 0.6), ("federated", 0.7)):
        for name, more in zip(names, (-0.05, 0.05), strict=True):
            for part, less in (("little history", 0.1), ("the others", 0.0)):
                figures = {"auc": value + more - less, "rows": 7.0}
                run.append(
                    {"kind": "part", "seed": 0, "arm": arm, "merchant": name, "by": HISTORY}
                    | {"part": part, "metric": "auc"}
                    | figures
                )
    (table,) = part_tables(run.records())
    assert [[round(s.mean, 3) for s in row] for _, row in table.rows] == [[0.5, 0.6], [0.6, 0.7]]
    page = write_report(run).read_text()
    section = re.search(r"Customers with little history</h2>(.*?)<h2>", page, re.S)[1]
    assert "AUC, little history" in section
    assert "0.600" in section
    # A merchant without such rows is left out of the mean, and the arm stays.
    record = {"kind": "part", "seed": 0, "arm": "federated", "merchant": names[0], "by": HISTORY}
    run.append(record | {"part": "little history", "metric": "auc", "auc": None, "rows": 0.0})
    (table,) = part_tables(run.records())
    assert table.rows[1][1][0].mean == pytest.approx(0.65)
