"""Random streams for sampling and noise: cryptographic in a real run, seeded in a test.

Noise from a general-purpose generator can be predicted from a few outputs, and a float32
Gaussian betrays its input through the gaps of its grid (Mironov 2012; Jin et al. 2021,
arXiv:2112.05307). Here every draw comes from ChaCha20 keyed by the operating system, in
float64, each Gaussian as the sum of four (Holohan and Braghin 2021, arXiv:2107.10138).
"""

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from silotune.errors import PrivacyError

__all__ = ["RandomSource", "SecureSource", "SeededSource"]


class RandomSource(Protocol):
    """Where sampling and noise come from."""

    @property
    def is_private(self) -> bool:
        """False when the draws can be reproduced: what they protect is then not private."""
        ...

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent draws from [0, 1) on the grid of 2**-53."""
        ...

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent draws from the standard normal."""
        ...

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Return ``count`` independent draws, each of 0 to ``below`` - 1 exactly as likely.

        Args:
            count: how many.
            below: 1 to 2**62.
        """
        ...


class SecureSource:
    """ChaCha20 keyed by the operating system; the key is never stored and never repeated."""

    is_private = True

    def __init__(self) -> None:
        self._draw_key()

    def _draw_key(self) -> None:
        # 16 bytes: block counter and nonce. A fresh key makes any nonce a fresh one.
        cipher = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None)
        self._stream = cipher.encryptor()
        self._process = os.getpid()

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent draws from [0, 1) on the grid of 2**-53."""
        bits = self._words(count)
        grid: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return grid

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent draws from the standard normal."""
        # Two Box-Muller pairs: four normals whose halved sum is normal again.
        u = self.uniform(4 * count).reshape(2, 2, count)
        radius, angle = np.sqrt(-2 * np.log1p(-u[0])), 2 * np.pi * u[1]
        four: NDArray[np.float64] = (radius * (np.cos(angle) + np.sin(angle))).sum(axis=0)
        return four / 2

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Return ``count`` independent draws, each of 0 to ``below`` - 1 exactly as likely."""
        _check_range(below)
        # Words of the last, incomplete run of `below` would favour small numbers.
        surplus = 2**64 % below
        drawn = self._words(count)
        if surplus:
            limit = np.uint64(2**64 - surplus)
            drawn = drawn[drawn < limit]
            while drawn.size < count:
                more = self._words(count - drawn.size)
                drawn = np.concatenate([drawn, more[more < limit]])
        return (drawn % np.uint64(below)).astype(np.int64)

    def _words(self, count: int) -> NDArray[np.uint64]:
        # A forked process starts with a copy of the stream: two releases with the same noise
        # would differ by the data alone.
        if os.getpid() != self._process:
            self._draw_key()
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)


class SeededSource:
    """Reproducible draws, for tests and simulations. Whatever it protects is not private."""

    is_private = False

    def __init__(self, seed: int | tuple[int, ...]) -> None:
        self._generator = np.random.default_rng(seed)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent draws from [0, 1)."""
        return self._generator.random(count)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent draws from the standard normal."""
        return self._generator.standard_normal(count)

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Return ``count`` independent draws from 0 to ``below`` - 1."""
        _check_range(below)
        return self._generator.integers(0, below, count, dtype=np.int64)


def _check_range(below: int) -> None:
    if not 1 <= below <= 2**62:
        raise PrivacyError(f"integers below {below} cannot be drawn: the range is 1 to 2**62.")
