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
        # A forked process starts with a copy of the stream: two releases with the same noise
        # would differ by the data alone.
        if os.getpid() != self._process:
            self._draw_key()
        bits = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)
        grid: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return grid

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent draws from the standard normal."""
        # Two Box-Muller pairs: four normals whose halved sum is normal again.
        u = self.uniform(4 * count).reshape(2, 2, count)
        radius, angle = np.sqrt(-2 * np.log1p(-u[0])), 2 * np.pi * u[1]
        four: NDArray[np.float64] = (radius * (np.cos(angle) + np.sin(angle))).sum(axis=0)
        return four / 2


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
