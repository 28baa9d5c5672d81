import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import client.prepared
from client.prepared import load_or_prepare
from silotune.federation import build_model, read_federation
from silotune.models.text_model import ModelConfig
from silotune.tables.silo_folder import SiloFolder


@pytest.fixture(scope="module")
def built(small_federation, tmp_path_factory):
    """A silo folder, a task of few examples, and its model."""
    federation = read_federation(small_federation(tmp_path_factory.mktemp("prepared"), "plain"))
    task = replace(federation.task, positives=1, negatives=1, test_negatives=1)
    return federation.silos[0], task, build_model(federation.models, "text", task)


@pytest.fixture
def prepared(built, tmp_path):
    """A function that prepares a copy of a silo, and the folder of its cache."""
    silo, task, model = built
    shutil.copytree(silo, tmp_path / "silo", ignore=shutil.ignore_patterns("cache"))
    folder = SiloFolder.open(tmp_path / "silo")
    return lambda: load_or_prepare(folder, task, model), tmp_path / "silo/cache"


def _same(first, second):
    assert torch.equal(first.stored_NH, second.stored_NH)
    assert torch.equal(first.ids_N, second.ids_N)
    for field in ("numeric_EF", "label_EK", "user_E", "visit_E", "test_E"):
        np.testing.assert_array_equal(
            getattr(first.examples, field), getattr(second.examples, field)
        )


def test_the_second_time_nothing_is_tokenised_and_no_layer_is_run(prepared, monkeypatch):
    load, _ = prepared
    first = load()
    monkeypatch.setattr(client.prepared, "_tokenise", lambda *_: pytest.fail("tokenised again"))
    monkeypatch.setattr(client.prepared, "_run_prefix", lambda *_: pytest.fail("run again"))
    _same(first, load())


@pytest.mark.parametrize("which", ["examples-*.npz", "prefix-*.bin"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_cache_file_cut_short_is_made_again(prepared, which, keep):
    load, cache = prepared
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
    load, cache = prepared
    load()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert Path(cache).parent.name == "silo"


@pytest.mark.parametrize("damage", [False, True])
def test_a_model_without_text_takes_the_rows_that_are_there(built, prepared, monkeypatch, damage):
    load, cache = prepared
    with_text = load()
    _, task, _ = built
    numeric = build_model({"numeric": ModelConfig(use_text=False)}, "numeric", task)
    if damage:
        (path,) = cache.glob("examples-*.npz")
        path.write_bytes(path.read_bytes()[:100])
    else:
        monkeypatch.setattr(type(task), "build", lambda *_: pytest.fail("built again"))
    own = load_or_prepare(SiloFolder.open(cache.parent), task, numeric)
    assert own.ids_N is None
    assert own.stored_NH is None
    assert len(own.start_E) == len(own.examples) == len(with_text.examples)
    for field in ("numeric_EF", "label_EK", "user_E", "visit_E", "test_E"):
        np.testing.assert_array_equal(
            getattr(own.examples, field), getattr(with_text.examples, field)
        )


def test_another_task_takes_nothing_of_it(built, prepared):
    load, cache = prepared
    load()
    _, task, _ = built
    other = replace(task, negatives=2)
    numeric = build_model({"numeric": ModelConfig(use_text=False)}, "numeric", other)
    own = load_or_prepare(SiloFolder.open(cache.parent), other, numeric)
    assert len(own.examples) > len(load().examples)
