from pathlib import Path

import numpy as np
import pytest
import torch

import client.prepared
from client.prepared import load_or_prepare
from silotune.federation import build_model, read_federation
from silotune.tables.silo_folder import SiloFolder


@pytest.fixture
def prepared(small_federation, tmp_path):
    """A model, its task, a copy of a silo, and a function that prepares it."""
    import shutil

    federation = read_federation(small_federation(tmp_path, "plain"))
    shutil.copytree(federation.silos[0], tmp_path / "silo", ignore=shutil.ignore_patterns("cache"))
    model = build_model(federation.models, "text", federation.task)
    silo = SiloFolder.open(tmp_path / "silo")
    return model, lambda: load_or_prepare(silo, federation.task, model), tmp_path / "silo/cache"


def _same(first, second):
    assert torch.equal(first.stored_NH, second.stored_NH)
    assert torch.equal(first.ids_N, second.ids_N)
    for field in ("numeric_EF", "label_EK", "user_E", "visit_E", "test_E"):
        np.testing.assert_array_equal(
            getattr(first.examples, field), getattr(second.examples, field)
        )


def test_the_second_time_nothing_is_tokenised_and_no_layer_is_run(prepared, monkeypatch):
    _, load, _ = prepared
    first = load()
    monkeypatch.setattr(client.prepared, "_tokenise", lambda *_: pytest.fail("tokenised again"))
    monkeypatch.setattr(client.prepared, "_run_prefix", lambda *_: pytest.fail("run again"))
    _same(first, load())


@pytest.mark.parametrize("which", ["examples-*.npz", "prefix-*.bin"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_cache_file_cut_short_is_made_again(prepared, which, keep):
    _, load, cache = prepared
    first = load()
    whole = first.stored_NH.clone()
    (path,) = cache.glob(which)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    second = load()
    assert torch.equal(second.stored_NH, whole)
    assert path.stat().st_size == len(data)
    assert not list(cache.glob("*.part"))


def test_the_cache_is_of_the_silo_and_closed_to_others(prepared):
    _, load, cache = prepared
    load()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert Path(cache).parent.name == "silo"
