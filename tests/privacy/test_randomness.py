import os

import numpy as np
import pytest
from scipy import stats

from privacy import randomness
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import PrivacyError

SOURCES = {"secure": SecureSource, "seeded": lambda: SeededSource(1)}
# The secure source cannot be seeded: every bound leaves a chance below 1e-6 to a right stream.
CHANCE = 1e-6


@pytest.fixture(params=SOURCES)
def source(request):
    return SOURCES[request.param]()


@pytest.mark.parametrize(
    ("claimed_std", "accepted"), [(1.0, True), (0.97, False), (1.03, False), (2**0.5, False)]
)
def test_noise_has_the_claimed_std_and_no_other(source, claimed_std, accepted):
    draws = source.gaussian(100_000) / claimed_std
    # Sum of squares of n standard normals: chi-square with n degrees of freedom.
    tail = stats.chi2.cdf((draws**2).sum(), len(draws))
    assert (CHANCE < tail < 1 - CHANCE) == accepted


@pytest.mark.parametrize(
    ("distort", "accepted"),
    [
        (lambda x: x, True),
        (lambda x: x + 0.02, False),
        (lambda x: np.clip(x, -2.5, 2.5), False),
        (lambda x: np.round(x, 1), False),
        (lambda x: np.sqrt(3 / 5) * stats.t(5).ppf(stats.norm.cdf(x)), False),
    ],
)
def test_noise_has_the_shape_of_a_normal_and_no_other(source, distort, accepted):
    # So many that a shift of 0.02 shows in every run, not in most: 14 standard errors.
    draws = distort(source.gaussian(500_000))
    likely = stats.kstest(draws, "norm").pvalue > CHANCE
    tails = stats.binomtest(int((np.abs(draws) > 3).sum()), len(draws), 2 * stats.norm.sf(3))
    assert (likely and tails.pvalue > CHANCE) == accepted


def test_uniform_draws_fill_the_unit_interval_evenly_and_stay_below_one(source):
    draws = source.uniform(200_000)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > CHANCE


def test_uniform_draws_use_every_bit_of_their_grid(source):
    steps = source.uniform(50_000) * 2.0**53
    assert np.array_equal(steps, np.floor(steps))
    bits = (steps.astype(np.uint64)[:, None] >> np.arange(53, dtype=np.uint64)) & np.uint64(1)
    ones = bits.sum(axis=0)
    assert min(stats.binomtest(int(k), len(steps), 0.5).pvalue for k in ones) > CHANCE


def test_the_largest_and_smallest_bits_give_finite_noise(monkeypatch):
    class Stuck:
        def __init__(self, byte):
            self.byte = byte

        def update(self, data):
            return bytes([self.byte]) * len(data)

    for byte in (0x00, 0xFF):
        source = SecureSource()
        monkeypatch.setattr(source, "_stream", Stuck(byte))
        assert (source.uniform(8) >= 0).all()
        assert (source.uniform(8) < 1).all()
        assert np.isfinite(source.gaussian(8)).all()


@pytest.mark.parametrize("lag", [1, 2, 3, 50_000])
def test_draws_do_not_depend_on_those_before(source, lag):
    # 50,000: the same place of the next call.
    draws = np.concatenate([source.gaussian(50_000), source.gaussian(50_000)])
    for values in (draws, np.abs(draws)):
        assert stats.pearsonr(values[:-lag], values[lag:]).pvalue > CHANCE


def test_no_draw_repeats_between_calls_or_between_two_secure_sources():
    one, other = SecureSource(), SecureSource()
    draws = np.concatenate([s.uniform(5_000) for s in (one, other, one, other)])
    # Chance of a repeat among 20,000 draws of 53 bits: 2e-8.
    assert np.unique(draws).size == draws.size


def test_a_forked_process_does_not_repeat_the_noise_of_its_parent():
    source = SecureSource()
    source.uniform(3)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, source.uniform(100).tobytes())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        theirs = np.frombuffer(pipe.read())
    assert theirs.size == 100
    assert not np.intersect1d(theirs, source.uniform(100)).size


def test_the_key_comes_from_the_operating_system_and_from_nothing_else(monkeypatch):
    asked = []

    def urandom(count):
        asked.append(count)
        return bytes(range(count))

    monkeypatch.setattr(randomness.os, "urandom", urandom)
    np.random.seed(1)  # noqa: NPY002 - the generator that must play no part
    one = SecureSource().uniform(10)
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(one, SecureSource().uniform(10))
    assert sorted(asked) == [16, 16, 32, 32]


def test_a_known_key_gives_the_stream_of_chacha20(monkeypatch):
    # RFC 8439, section 2.3.2: key 00..1f, counter 1, nonce 00:00:00:09:00:00:00:4a:00:00:00:00.
    words = bytes.fromhex("01000000 00000009 0000004a 00000000")
    monkeypatch.setattr(randomness.os, "urandom", lambda n: bytes(range(32)) if n == 32 else words)
    first = int.from_bytes(bytes.fromhex("10f1e7e4d13b5915"), "little")
    assert SecureSource().uniform(1)[0] == (first >> 11) * 2.0**-53


def test_only_a_seeded_source_repeats_and_it_says_that_it_is_not_private():
    assert SecureSource().is_private
    assert not SeededSource(3).is_private
    assert np.array_equal(SeededSource((3, 1)).gaussian(9), SeededSource((3, 1)).gaussian(9))
    assert not np.array_equal(SeededSource((3, 1)).gaussian(9), SeededSource((3, 2)).gaussian(9))
    assert not np.array_equal(SecureSource().gaussian(9), SecureSource().gaussian(9))


def test_no_draw_is_asked_for_and_none_comes(source):
    assert source.uniform(0).shape == source.gaussian(0).shape == (0,)


@pytest.mark.parametrize("below", [1, 2, 3, 7, 64, 1000])
def test_integers_are_even_over_their_whole_range_and_nothing_else(source, below):
    draws = source.integers(100_000, below)
    assert draws.dtype == np.int64
    assert draws.min() >= 0
    assert draws.max() < below
    if below > 1:
        assert stats.chisquare(np.bincount(draws, minlength=below)).pvalue > CHANCE


@pytest.mark.parametrize("below", [3 * 2**60, 2**62])
def test_integers_of_a_range_that_does_not_divide_the_words_favour_no_part(source, below):
    # Words taken modulo 3 × 2**60 without rejection: 6/16 of them below a third of the range.
    low = int((source.integers(100_000, below) < below // 3).sum())
    assert stats.binomtest(low, 100_000, (below // 3) / below).pvalue > CHANCE


def test_integers_above_the_last_whole_run_are_drawn_again(monkeypatch):
    words = np.array([2**64 - 1, 5, 2**64 - 2, 7], dtype=np.uint64)

    class Given:
        at = 0

        def update(self, data):
            taken = words[self.at : self.at + len(data) // 8]
            self.at += taken.size
            return taken.tobytes()

    source = SecureSource()
    monkeypatch.setattr(source, "_stream", Given())
    # 2**64 - 1 is a multiple of 3: that word alone is surplus.
    assert source.integers(3, 3).tolist() == [2, (2**64 - 2) % 3, 1]


def test_a_forked_process_does_not_repeat_the_integers_of_its_parent():
    source = SecureSource()
    source.integers(3, 2**62)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, source.integers(100, 2**62).tobytes())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        theirs = np.frombuffer(pipe.read(), np.int64)
    assert theirs.size == 100
    assert not np.intersect1d(theirs, source.integers(100, 2**62)).size


@pytest.mark.parametrize("below", [0, -1, 2**62 + 1])
def test_a_range_that_cannot_be_drawn_exactly_is_refused(source, below):
    with pytest.raises(PrivacyError, match="2\\*\\*62"):
        source.integers(1, below)
