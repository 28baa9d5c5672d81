"""The store under attack: crashes, damage, full disks, other processes, other models."""

import errno
import os
import signal
import threading

import numpy as np
import pytest
import torch

import client.prefix_store
from client.prefix_file import Texts
from client.prefix_store import PrefixStore

H = 8
SOME = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [7, 7]]


def texts_of(tokens):
    ids_N = np.concatenate([np.array(t, dtype=np.int32) for t in tokens])
    return Texts.of(ids_N, np.array([len(t) for t in tokens], dtype=np.int64))


def truth(tokens, dtype=torch.float32):
    """The activations: any function of a text's tokens alone."""
    rows = [[(sum(t) + 10 * k + h / 8) % 17 for h in range(H)] for t in tokens for k in t]
    return torch.tensor(rows, dtype=dtype)


class Layers:
    """Stands for the frozen layers; remembers which texts they ran over."""

    def __init__(self, tokens, dtype=torch.float32):
        self.tokens, self.states, self.ran = tokens, truth(tokens, dtype), []

    def __call__(self, missing_U, out_NH):
        texts = texts_of(self.tokens)
        for index in missing_U.tolist():
            texts.rows(out_NH, index)[:] = texts.rows(self.states, index)
            self.ran.append(self.tokens[index])
        return 1e-4


@pytest.fixture
def get(tmp_path):
    """Ask a new store, as another process would; return the activations and what was run."""

    def get(tokens=SOME, *, scope="base 1", dtype=torch.float32, **settings):
        layers = Layers(tokens, dtype)
        store = PrefixStore(tmp_path / "cache", scope, H, dtype, **settings)
        states = store.get(texts_of(tokens), layers)
        if states is not None:
            assert torch.equal(states, truth(tokens, dtype))
        return states, layers.ran

    get.folder = tmp_path / "cache"
    get.files = lambda: sorted(p.name for p in get.folder.glob("*"))
    return get


def test_no_text_is_run_twice_whatever_set_it_is_in(get):
    assert get()[1] == SOME
    assert get()[1] == []
    more = [[4], [30, 31], [1, 2, 3], [32]]
    assert get(more)[1] == [[30, 31], [32]]
    # All of it is there, in two sets.
    assert get([[32], [7, 7], [4]])[1] == []
    assert len(get.files()) == 3


@pytest.mark.parametrize("other", [{"scope": "base 2"}, {"dtype": torch.bfloat16}])
def test_another_model_or_precision_shares_nothing(get, other):
    get()
    assert get(**other)[1] == SOME
    assert get()[1] == []


def test_the_files_are_closed_to_everyone_but_their_owner(get):
    get.folder.mkdir(mode=0o755)
    get.folder.chmod(0o755)
    before = os.umask(0)
    try:
        get()
    finally:
        os.umask(before)
    assert get.folder.stat().st_mode & 0o777 == 0o700
    (path,) = get.folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("keep", [0, 1, 50, 100, 4000, 4096, 4097, -1])
def test_a_file_cut_short_is_made_again(get, keep):
    get()
    (path,) = get.folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    assert get()[1] == SOME
    assert path.read_bytes() == whole
    assert get()[1] == []


def test_a_changed_byte_anywhere_is_noticed_and_costs_no_more_than_its_text(get):
    get()
    (path,) = get.folder.iterdir()
    whole = path.read_bytes()
    index = 96 + 24 * len(SOME)
    # Between the index and the activations lie zeros that nobody reads.
    places = [*range(index), *range(4096, len(whole), 7)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        _, ran = get()
        assert len(ran) == (1 if place >= 4096 else len(SOME)), place
        assert path.read_bytes() == whole, place


def test_a_damaged_text_is_taken_from_another_set_that_has_it_whole(get):
    get()
    (first,) = get.folder.iterdir()
    get([[1, 2, 3], [50]])
    data = bytearray(first.read_bytes())
    data[4096] ^= 1
    first.write_bytes(data)
    assert get()[1] == []
    assert get([[1, 2, 3]])[1] == []


def test_what_is_written_into_the_activations_stays_out_of_the_file(get):
    for _ in range(2):
        states, _ = get()
        states.zero_()
    assert get()[1] == []


def _size(tokens=SOME):
    return 4096 + sum(map(len, tokens)) * H * 4


def test_the_set_used_longest_ago_makes_room(get):
    sets = [[[k, 1], [k, 2], [k, 3]] for k in range(3)]
    budget = 2 * _size(sets[0])
    held, _ = get(sets[0], budget=budget)
    for path, when in zip(get.folder.iterdir(), (100,), strict=True):
        os.utime(path, (when, when))
    get(sets[1], budget=budget)
    first = next(p for p in get.folder.iterdir() if p.stat().st_mtime == 100)
    assert get(sets[0], budget=budget)[1] == []
    assert first.stat().st_mtime > 100
    second = next(p for p in get.folder.iterdir() if p != first)
    os.utime(second, (200, 200))
    get(sets[2], budget=budget)
    assert not second.exists()
    assert get(sets[0], budget=budget)[1] == []
    assert get(sets[1], budget=budget)[1] == sets[1]
    assert sum(p.stat().st_size for p in get.folder.iterdir()) <= budget
    # A dropped set serves on whoever has opened it.
    for path in get.folder.iterdir():
        path.unlink()
    assert torch.equal(held, truth(sets[0]))


def test_a_set_larger_than_the_budget_is_left_out_and_drops_nothing(get):
    get([[1]], budget=_size([[1]]))
    before = get.files()
    assert get(budget=_size() - 1) == (None, [])
    assert get.files() == before


def test_texts_of_a_set_that_must_go_are_copied_first(get):
    get(budget=_size())
    assert get([[5, 6, 7, 8, 9], [60]], budget=_size())[1] == [[60]]
    assert len(get.files()) == 1


def test_the_default_budget_is_a_share_of_the_free_disk(get, monkeypatch):
    usage = type("Usage", (), {"free": 4 * _size()})
    monkeypatch.setattr(client.prefix_store.shutil, "disk_usage", lambda _: usage)
    assert get()[0] is not None
    usage.free = 4 * (_size() - 1) - _size()
    assert get([*SOME[1:], SOME[0]])[0] is None


@pytest.mark.parametrize("what", ["posix_fallocate", "open"])
def test_a_disk_that_takes_nothing_more_stops_no_training(get, monkeypatch, what):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, what, full)
    assert get() == (None, [])
    assert get.files() == []


def test_after_an_error_in_the_layers_nothing_is_left(get):
    def fail(missing_U, out_NH):
        out_NH[0] = 1.0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        PrefixStore(get.folder, "base 1", H, torch.float32).get(texts_of(SOME), fail)
    assert get.files() == []


def _in_a_child(function):
    child = os.fork()
    if child == 0:
        function()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status)


@pytest.mark.parametrize("tokens", [SOME, [[70], [71]]], ids=["same set", "another"])
def test_a_killed_writer_leaves_nothing_that_is_read_or_stays(get, tokens):
    def die(missing_U, out_NH):
        out_NH[:] = 1.0
        os.kill(os.getpid(), signal.SIGKILL)

    def write():
        PrefixStore(get.folder, "base 1", H, torch.float32).get(texts_of(SOME), die)

    assert _in_a_child(write) == signal.SIGKILL
    assert [name.rpartition(".")[2] for name in get.files()] == ["part"]
    assert get(tokens)[1] == tokens
    assert [name.rpartition(".")[2] for name in get.files()] == ["bin"]


class Slow(Layers):
    """Layers that wait in the middle until they are told to go on."""

    def __init__(self, tokens):
        super().__init__(tokens)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, missing_U, out_NH):
        self.begun.set()
        assert self.go_on.wait(20)
        return super().__call__(missing_U, out_NH)


@pytest.fixture
def writer(get):
    """A writer of SOME that is in the middle of it. Locks are per opened file, as between
    processes."""
    slow = Slow(SOME)
    store = PrefixStore(get.folder, "base 1", H, torch.float32)
    thread = threading.Thread(target=store.get, args=(texts_of(SOME), slow))
    thread.start()
    assert slow.begun.wait(20)
    yield slow
    slow.go_on.set()
    thread.join()


def test_who_meets_a_writer_waits_and_computes_and_writes_nothing(get, writer, monkeypatch):
    written = []
    right = client.prefix_store.become
    monkeypatch.setattr(client.prefix_store, "become", lambda *a: (written.append(1), right(*a)))
    threading.Timer(0.3, writer.go_on.set).start()
    assert get()[1] == []
    assert writer.ran == SOME
    assert written == [1]
    assert len(get.files()) == 1


def test_who_has_waited_too_long_trains_without(get, writer):
    assert get(wait=0.1) == (None, [])
    writer.go_on.set()


def test_another_set_is_written_meanwhile_and_the_writer_is_left_alone(get, writer):
    assert get([[80], [81]])[1] == [[80], [81]]
    writer.go_on.set()
    assert get()[1] == []
    assert writer.ran == SOME
