import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from silotune import __version__
from silotune.errors import ConfigError
from simulations.run_folder import RunFolder

SCORE = {"kind": "score", "seed": 0, "arm": "federated", "merchant": "store-1", "auc": 0.8}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "first", {"name": "demo", "seeds": 2})


def test_a_new_run_says_what_it_is_and_is_not_private_until_said_otherwise(run):
    raw = json.loads((run.path / "run.json").read_text())
    assert raw["version"] == __version__
    assert raw["scenario"] == {"name": "demo", "seeds": 2}
    assert raw["status"] == "running"
    assert raw["finished"] is None
    assert raw["private"] is False
    started = datetime.fromisoformat(raw["started"])
    assert abs((datetime.now(UTC) - started).total_seconds()) < 60
    assert run.records() == []


def test_records_come_back_in_order_and_are_on_disk_at_once(run):
    for seed in range(3):
        run.append(SCORE | {"seed": seed})
        assert RunFolder.open(run.path).records()[-1]["seed"] == seed
    assert [r["seed"] for r in run.records()] == [0, 1, 2]
    assert (run.path / "metrics.jsonl").read_bytes().count(b"\n") == 3


def test_what_describe_sets_is_there_for_the_next_reader(run):
    merchants = [{"name": "store-1", "nominal_users": 90, "train_examples": 3}]
    run.describe(merchants=merchants, excluded=[{"name": "store-2", "reason": "closed"}])
    run.describe(private=True, privacy_note="secret noise", timings={"data": np.float32(1.5)})
    run.finish("finished")
    info = RunFolder.open(run.path).info
    assert info == run.info
    assert (info.merchants[0].name, info.merchants[0].test_examples) == ("store-1", None)
    assert info.excluded[0].reason == "closed"
    assert (info.private, info.privacy_note, info.timings) == (True, "secret noise", {"data": 1.5})
    assert info.status == "finished"
    assert info.finished is not None


def test_a_stopped_run_that_goes_on_is_running_again(run):
    run.append(SCORE)
    run.finish("interrupted")
    again = RunFolder.open(run.path)
    again.append(SCORE)
    assert RunFolder.open(run.path).info.status == "running"
    assert RunFolder.open(run.path).info.finished is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "finished"}, "'status' cannot be set; known: merchants"),
        ({"merchants": [{"nominal_users": 3}]}, r"key 'merchants\[0\].name' is missing"),
        ({"timings": {"data": "long"}}, "'timings.data' is 'long'"),
    ],
)
def test_describe_refuses_what_the_format_has_not(run, fields, message):
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=message):
        run.describe(**fields)
    assert (run.path / "run.json").read_bytes() == before


def test_numbers_of_numpy_paths_and_tuples_become_json_and_nan_becomes_null(run):
    figures = {"auc": np.float32(0.5), "log_loss": float("nan"), "ndcg": np.float64("inf")}
    run.append(SCORE | figures | {"seed": np.int64(4), "where": Path("a/b"), "pair": (1, 2)})
    record = run.records()[0]
    assert (record["seed"], record["auc"], record["log_loss"], record["ndcg"]) == (
        4,
        0.5,
        None,
        None,
    )
    assert (record["where"], record["pair"]) == ("a/b", [1, 2])


def test_letters_that_no_file_can_hold_are_replaced(run):
    run.append({"kind": "event", "message": "caf\udce9 ε"})
    assert RunFolder.open(run.path).records() == [{"kind": "event", "message": "caf? ε"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"seed": 1}, "'kind' is missing"),
        ({"kind": "score", "seed": 0, "arm": "a"}, "'merchant' must be a text, and is None"),
        (SCORE | {"seed": "0"}, "'seed' must be a whole number, and is '0'"),
        (SCORE | {"seed": True}, "'seed' must be a whole number, and is True"),
        (SCORE | {"auc": "high"}, "'auc' must be a number or null, and is 'high'"),
        (SCORE | {"auc": 10**400}, "'auc' must be a number or null"),
        ({"kind": "calibration", "seed": 0, "arm": "a", "bins": [[1, 2]]}, "three numbers"),
        ({"kind": "round", "seed": 0, "arm": "a", "round": 0, "merchants": 3}, "list of names"),
    ],
)
def test_a_malformed_record_is_refused_on_writing_and_on_reading(run, record, message):
    run.append(SCORE)
    with pytest.raises(ConfigError, match=message):
        run.append(record)
    assert run.records() == [SCORE]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(ConfigError, match=f"metrics.jsonl: line 2: .*{message}"):
        RunFolder.open(run.path)


def test_a_record_of_an_unknown_kind_is_kept(run):
    run.append({"kind": "weather", "seed": "any"})
    assert RunFolder.open(run.path).records() == [{"kind": "weather", "seed": "any"}]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_a_kill_cut_off_is_left_out_and_reported(run, cut):
    run.append(SCORE)
    run.append(SCORE | {"seed": 1})
    path = run.path / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    again = RunFolder.open(run.path)
    assert again.records() == [SCORE]
    assert again.torn is not None
    assert "metrics.jsonl: line 2 is cut off" in again.torn
    # Looking does not write.
    assert RunFolder.open(run.path).torn == again.torn


def test_half_a_letter_at_the_end_is_a_cut_off_line_too(run):
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "event", "message": "ε'.encode()[:-1])
    assert RunFolder.open(run.path).records() == []


def test_a_run_goes_on_behind_a_cut_off_line(run):
    run.append(SCORE)
    run.append(SCORE | {"seed": 1})
    os.truncate(run.path / "metrics.jsonl", (run.path / "metrics.jsonl").stat().st_size - 5)
    again = RunFolder.open(run.path)
    again.append(SCORE | {"seed": 2})
    assert again.torn is None
    assert [r["seed"] for r in RunFolder.open(run.path).records()] == [0, 2]


def test_a_damaged_line_that_is_not_the_last_is_an_error_with_its_number(run):
    run.append(SCORE)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "sco\n' + json.dumps(SCORE) + "\n")
    with pytest.raises(ConfigError, match=r"metrics.jsonl: line 2 is not valid JSON"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("line", ["[1]", "null", "", "\x00\x00", "[" * 100_000])
def test_a_whole_line_that_is_no_record_is_an_error(run, line):
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=r"metrics.jsonl: line 1"):
        RunFolder.open(run.path)


def test_a_record_that_did_not_fit_on_the_disk_leaves_no_damaged_line(run, monkeypatch):
    run.append(SCORE)
    path = run.path / "metrics.jsonl"

    class HalfWritten:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def seek(self, *where):
            return self.file.seek(*where)

        def write(self, content):
            self.file.write(content[:10])
            self.file.flush()
            raise OSError(28, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda p, *a, **k: HalfWritten(opened(p, *a, **k)))
    with pytest.raises(OSError, match="No space left"):
        run.append(SCORE | {"seed": 1})
    monkeypatch.undo()
    assert not path.read_bytes().endswith(b"\n")
    run.append(SCORE | {"seed": 2})
    assert [r["seed"] for r in RunFolder.open(run.path).records()] == [0, 2]


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="is not empty"):
        RunFolder.create(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="cannot be made"):
        RunFolder.create(tmp_path / "thesis.txt" / "run", {})


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: holds no run \(run.json is missing\)"):
        RunFolder.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n"version": \n}', "run.json: line 3 is not valid JSON"),
        (b"\xff\xfe", "run.json: is not JSON in UTF-8"),
        (b"[]", "run.json: must be a JSON object"),
        (b'{"version": "1", "scenario": {}}', "run.json: key 'started' is missing"),
        (b"", "run.json: line 1 is not valid JSON"),
    ],
)
def test_a_damaged_description_is_named(run, content, message):
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        RunFolder.open(run.path)


def test_missing_metrics_are_named(run):
    (run.path / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"metrics.jsonl: cannot be read"):
        RunFolder.open(run.path)
