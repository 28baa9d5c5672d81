"""Fewer bits on the wire: exact sizes, unbiased, bounded error, hostile bytes refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from silotune.encoding import BLOCK, ENCODINGS, decode, encode, encoded_size
from silotune.errors import MessageError

VECTORS = arrays.arrays(
    np.float32,
    st.integers(1, 3 * BLOCK + 1),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
)


def round_trip(values, encoding, seed=0):
    payload = encode(values, encoding, np.random.default_rng(seed))
    assert len(payload) == encoded_size(values.size, encoding)
    return decode(payload, values.size, encoding).numpy()


@given(VECTORS, st.integers(0, 5))
def test_the_error_is_within_what_the_encoding_states(values, seed):
    assert np.array_equal(round_trip(values, "float32"), values)
    # A number below the smallest normal one may move by one step of the smallest ones.
    error = np.abs(round_trip(values, "bfloat16", seed).astype(np.float64) - values)
    assert (error <= np.abs(values) * 2.0**-7 + 2.0**-133).all()
    found = round_trip(values, "int8", seed).astype(np.float64)
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK].astype(np.float64)
        step = np.abs(block).max() / 127
        assert np.abs(found[start : start + BLOCK] - block).max() <= step * (1 + 1e-5) + 1e-44


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_rounding_is_unbiased_and_its_draws_are_independent(encoding):
    values = np.random.default_rng(0).normal(size=BLOCK).astype(np.float32)
    found = np.stack([round_trip(values, encoding, seed) for seed in range(4000)])
    error = found.astype(np.float64) - values
    # One step of a float32 in the scale is allowed on top: the largest level lies within it.
    standard_error = error.std(0) / np.sqrt(len(error))
    assert (np.abs(error.mean(0)) <= 5 * standard_error + 1e-6).all()
    assert error.std() > 0
    # The sum of the errors of independent roundings grows as the root of their number.
    assert error.sum(1).std() == pytest.approx(np.sqrt((error.var(0)).sum()), rel=0.1)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_zeros_and_what_the_encoding_can_hold_come_back_exactly(encoding):
    values = np.array([0.0, -0.0, 127.0, -127.0, 64.0, 1.0], dtype=np.float32)
    if encoding == "int8":
        values = values[:2]
    assert np.array_equal(round_trip(values, encoding), values)
    assert round_trip(np.empty(0, np.float32), encoding).size == 0


def test_the_largest_numbers_stay_finite():
    largest = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max], dtype=np.float32)
    for seed in range(20):
        assert np.isfinite(round_trip(largest, "bfloat16", seed)).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bytes_that_are_not_the_encoding_are_refused(encoding):
    good = encode(np.ones(300, np.float32), encoding, np.random.default_rng(0))
    for wrong in (good[:-1], good + b"\0", b""):
        with pytest.raises(MessageError, match="bytes are not 300 numbers"):
            decode(wrong, 300, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(encoding, bad):
    if encoding == "bfloat16":
        payload = (np.full(4, bad, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    elif encoding == "int8":
        payload = np.array([bad], "<f4").tobytes() + np.ones(4, np.int8).tobytes()
    else:
        payload = np.full(4, bad, "<f4").tobytes()
    with pytest.raises(MessageError, match="not finite"):
        decode(payload, 4, encoding)
    assert torch.is_tensor(
        decode(encode(np.ones(4, np.float32), encoding, np.random.default_rng(0)), 4, encoding)
    )
