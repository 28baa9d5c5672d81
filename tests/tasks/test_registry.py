"""A task is chosen by its name, in every file that holds one."""

import dataclasses
import datetime as dt
import json
import tomllib

import pytest

from silotune.config import config, from_mapping
from silotune.errors import ConfigError
from silotune.tasks.registry import TASKS, AnyTask, read_task, task_mapping
from silotune.toml_text import toml_text

SPAN = {
    "first": dt.datetime.fromisoformat("2024-01-22"),
    "split": dt.datetime.fromisoformat("2024-04-15"),
    "last": dt.datetime.fromisoformat("2024-06-20"),
}


@config
class File:
    task: AnyTask
    other: int = 0


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_what_it_was_after_toml_and_after_json(name):
    task = read_task({"name": name, **SPAN, "seed": 7}, where="x")
    assert type(task) is TASKS[name]
    assert task.name == name
    spelled_out = tomllib.loads(toml_text({"task": task_mapping(task)}))
    assert from_mapping(File, spelled_out, where="x").task == task
    text = json.dumps(dataclasses.asdict(File(task=task)), default=str)
    assert from_mapping(File, json.loads(text), where="x").task == task


def test_a_table_without_a_name_is_the_first_task_there_was():
    assert read_task(SPAN, where="x").name == "promotion-response"
    assert from_mapping(File, {"task": SPAN}, where="x").task == read_task(SPAN, where="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "customer-chum"}, r"did you mean 'customer-churn'\?"),
        ({"name": "weather"}, "known names: promotion-response, customer-churn, customer-segment"),
        ({"name": 3}, "'3' is no task; known names"),
        ({"horizon": 3}, r"unknown key 'task.horizon'; did you mean 'horizon_days'\?"),
        ({"weather": 3}, "unknown key 'task.weather'; known keys: .*horizon_days"),
        ({"seed": "x"}, "'task.seed' is 'x'"),
        ({"seed": None, "step_days": 0}, "'task.seed' is None"),
        ({"step_days": 0}, r"\[task\] step_days is 0"),
    ],
)
def test_what_is_wrong_in_a_task_is_named_as_people_wrote_it(change, message):
    with pytest.raises(ConfigError, match=rf"^file: .*{message}"):
        from_mapping(File, {"task": {"name": "customer-churn", **SPAN, **change}}, where="file")


def test_a_missing_key_and_no_table_at_all_are_named():
    without = {key: value for key, value in SPAN.items() if key != "split"}
    with pytest.raises(ConfigError, match=r"^file: key 'task.split' is missing"):
        from_mapping(File, {"task": {"name": "customer-churn", **without}}, where="file")
    with pytest.raises(ConfigError, match=r"^file: 'task' is 3: it should be a table"):
        from_mapping(File, {"task": 3}, where="file")
    with pytest.raises(ConfigError, match=r"^x: name is 'weather'; known tasks: promotion-resp"):
        read_task({"name": "weather"}, where="x")
    with pytest.raises(ConfigError, match=r"^x: name is 3"):
        read_task({"name": 3}, where="x")
    with pytest.raises(ConfigError, match=r"^x: unknown key 'nam'; did you mean 'name'"):
        read_task({"nam": "weather", **SPAN}, where="x")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_a_model_needs(name):
    from simulations.baselines import METHODS
    from simulations.records import SCORE_METRICS

    task = read_task({"name": name, **SPAN}, where="x")
    assert task.outputs == task.objective.outputs
    assert len(set(task.numeric_names)) == len(task.numeric_names) > 0
    assert len(task.public_texts()) > 50
    assert set(task.simple_methods) <= set(METHODS)
    assert task.objective.main in SCORE_METRICS
