import os

import numpy as np
import pytest

from client.prepared import _EXAMPLES_KEPT, _keep_newest
from client.whole_file import claimed, load_arrays, open_private, save_arrays, write_text
from silotune.errors import ConfigError

ARRAYS = {"numbers": np.arange(40), "words": np.array(["a", "bc"])}


def _same(found):
    return found.keys() == ARRAYS.keys() and all((found[k] == ARRAYS[k]).all() for k in ARRAYS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "examples-1.npz"


def test_arrays_come_back_from_a_file_that_is_the_owners_alone(path):
    before = os.umask(0)
    try:
        save_arrays(path, ARRAYS)
    finally:
        os.umask(before)
    assert _same(load_arrays(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_a_killed_writer_left_is_no_part_of_the_next_file(path):
    open_private(path.parent)
    path.with_name(path.name + ".part").write_bytes(b"x" * 100_000)
    save_arrays(path, ARRAYS)
    assert _same(load_arrays(path))
    assert path.stat().st_size < 100_000


def test_a_file_that_lay_ready_for_it_is_closed_to_others_and_no_link_is_followed(tmp_path):
    out, other = tmp_path / "scores.parquet", tmp_path / "other"
    part = tmp_path / "scores.parquet.part"
    part.touch()
    part.chmod(0o666)
    write_text(out, "x")
    assert (out.read_text(), out.stat().st_mode & 0o777) == ("x", 0o600)
    other.write_text("kept")
    part.symlink_to(other)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_text(out, "y")
    assert (out.read_text(), other.read_text()) == ("x", "kept")


def test_damage_is_noticed(path):
    save_arrays(path, ARRAYS)
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        data = bytearray(whole)
        data[place] ^= 16
        path.write_bytes(data)
        assert load_arrays(path) is None, place
    for keep in (0, 10, 16, 17, len(whole) - 1):
        path.write_bytes(whole[:keep])
        assert load_arrays(path) is None


def test_two_writers_do_not_wait_for_each_other(path):
    open_private(path.parent)
    with claimed(path, 0.0) as file:
        assert file is not None
        save_arrays(path, ARRAYS)
        assert not path.exists()
    save_arrays(path, ARRAYS)
    assert _same(load_arrays(path))


def test_examples_used_longest_ago_are_dropped(path):
    for number in range(_EXAMPLES_KEPT + 3):
        one = path.with_name(f"examples-{number}.npz")
        save_arrays(one, ARRAYS)
        os.utime(one, (number, number))
    assert load_arrays(path.with_name("examples-0.npz"))  # used just now
    _keep_newest(path.parent)
    left = {int(p.stem.split("-")[1]) for p in path.parent.iterdir()}
    assert left == {0, *range(4, _EXAMPLES_KEPT + 3)}
