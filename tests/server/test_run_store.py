import pytest
import torch

from server.run_store import RunStore
from silotune.errors import ConfigError


def test_rounds_come_back_as_they_were_saved(tmp_path):
    store = RunStore(tmp_path / "job", "digest")
    assert store.next_round() == 0
    for round_ in range(3):
        store.save(round_, torch.full((4,), float(round_)), {"seconds": 1.5})
    again = RunStore(tmp_path / "job", "digest")
    assert again.next_round() == 3
    assert torch.equal(again.load(2), torch.full((4,), 2.0))
    assert [r["round"] for r in again.records()] == [0, 1, 2]


def test_a_round_cut_short_is_run_again(tmp_path):
    store = RunStore(tmp_path / "job", "digest")
    store.save(0, torch.zeros(4), {})
    (tmp_path / "job" / "round-0001.part").write_bytes(b"half")
    assert RunStore(tmp_path / "job", "digest").next_round() == 1


def test_a_damaged_round_is_named(tmp_path):
    store = RunStore(tmp_path / "job", "digest")
    store.save(0, torch.zeros(400), {})
    path = tmp_path / "job" / "round-0000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"round-0000\.safetensors"):
        store.load(0)


def test_an_adapter_of_another_layout_is_refused(tmp_path):
    RunStore(tmp_path / "job", "digest").save(0, torch.zeros(4), {})
    with pytest.raises(ConfigError, match="layout"):
        RunStore(tmp_path / "job", "other").load(0)
