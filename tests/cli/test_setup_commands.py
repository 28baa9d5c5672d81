"""Commands that do several steps at once: a merchant's tables, its files, its enrolment."""

import json
import subprocess
import sys

import pytest

from silotune.tables.silo_folder import SiloFolder

TABLES = {
    "events": "user_id,item_id,kind,time\nann,tea,purchase,2024-01-02\n",
    "items": "item_id,title,category\ntea,Tea,Drinks\n",
    "promotions": "item_id,start,end\ntea,2024-01-01,2024-01-02\n",
}
RUN = """\
nodes = 1
[task]
first = 2024-01-01T00:00:00
split = 2024-02-01T00:00:00
last = 2024-03-01T00:00:00
[model]
use_text = false
[job]
name = "one"
epsilon = 8.0
[job.private]
noise_multiplier = 1.0
clip_norm = 4.0
sampling_rate = 0.25
examples_per_user = 8
steps = 4
learning_rate = 0.5
"""


@pytest.fixture
def ask(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "silotune.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run


@pytest.fixture
def files(tmp_path, ask):
    """An aggregator's invitation, a run file and a merchant's tables; return init's options."""
    source = tmp_path / "tables"
    source.mkdir()
    for table, text in TABLES.items():
        (source / f"{table}.csv").write_text(text)
    (tmp_path / "run.toml").write_text(RUN)
    assert ask("server", "init", "aggregator").returncode == 0
    return ("--invitation", "aggregator/invitation.toml", "--run", "run.toml")


def test_one_command_makes_a_silo_from_tables_ready_and_writes_its_enrolment(tmp_path, ask, files):
    more = ("--data", "tables", "--name", "tea-shop", "--nominal-users", 25)
    done = ask("client", "init", "silo", *files, *more, "--enrolments", "out")
    assert done.returncode == 0, done.stderr
    assert SiloFolder.open(tmp_path / "silo").info.nominal_users == 25
    assert (tmp_path / "silo" / "client.toml").exists()
    told = json.loads((tmp_path / "out" / "tea-shop.json").read_text())
    assert set(told) == {"name", "public_key", "nominal_users"}
    assert told["name"] == "tea-shop"


def test_tables_without_a_name_or_for_two_folders_are_refused_and_nothing_is_made(
    tmp_path, ask, files
):
    named = ("--name", "shop", "--nominal-users", 25)
    for folders, options, said in (
        (("silo",), ("--data", "tables"), "--name"),
        (("silo",), named, "--data"),
        (("one", "two"), ("--data", "tables", *named), "one folder"),
    ):
        done = ask("client", "init", *folders, *files, *options)
        assert done.returncode == 2
        assert said in done.stderr
        assert not any((tmp_path / f).exists() for f in folders)


def test_a_run_that_shall_enrol_from_an_empty_folder_is_refused(tmp_path, ask, files):
    (tmp_path / "none").mkdir()
    done = ask("server", "run", "aggregator", "run.toml", "--enrol", "none")
    assert done.returncode == 2
    assert "none: holds no enrolment" in done.stderr
    assert not list((tmp_path / "aggregator").glob("runs/*"))


def test_following_without_a_run_says_so(ask, files):
    done = ask("server", "status", "aggregator", "--follow")
    assert done.returncode == 2
    assert "no run" in done.stderr
