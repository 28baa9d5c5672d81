"""How an update travels: float32, or fewer bits by stochastic rounding.

Rounding comes after the noise and sees nothing else, so it costs no privacy. It is unbiased:
the mean over many silos keeps what each of them alone loses (QSGD, Alistarh et al. 2017,
arXiv:1610.02132).

    float32   4 bytes a number, exact
    bfloat16  2 bytes a number, error below 2**-7 of the number
    int8      1 byte a number and 4 for each block, error below 1/127 of its block's largest

Shape suffixes: D numbers, B blocks.
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from silotune.errors import MessageError

__all__ = ["BLOCK", "ENCODINGS", "Encoding", "decode", "encode", "encoded_size"]

Encoding = Literal["float32", "bfloat16", "int8"]

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

BLOCK = 128
"""Numbers that share one scale in int8: 3% on top of the bytes."""

_LEVELS = 127
_LARGEST_BFLOAT16 = np.uint32(0x7F7F0000)


def encoded_size(size: int, encoding: Encoding) -> int:
    """Return the bytes of ``size`` numbers.

    >>> encoded_size(3463, "float32"), encoded_size(3463, "bfloat16"), encoded_size(3463, "int8")
    (13852, 6926, 3575)
    """
    if encoding == "int8":
        return size + 4 * -(-size // BLOCK)
    return size * (2 if encoding == "bfloat16" else 4)


def encode(
    values: NDArray[np.float32], encoding: Encoding, generator: np.random.Generator
) -> bytes:
    """Return ``values``, (D,) finite, as bytes.

    Args:
        values: already noised.
        encoding: one of `ENCODINGS`.
        generator: draws the direction of each rounding; need not be secret.
    """
    if encoding == "float32":
        return values.astype("<f4").tobytes()
    if encoding == "bfloat16":
        return _to_bfloat16(values, generator).astype("<u2").tobytes()
    blocks_BN = np.zeros((-(-values.size // BLOCK), BLOCK), dtype=np.float32)
    blocks_BN.reshape(-1)[: values.size] = values
    # Up, so that the largest number is within the levels.
    scale_B = np.nextafter(
        np.abs(blocks_BN).max(1, initial=0) / np.float32(_LEVELS), np.float32(np.inf)
    )
    exact_BN = blocks_BN.astype(np.float64) / scale_B[:, None].astype(np.float64)
    level_BN = np.floor(exact_BN + generator.random(exact_BN.shape))
    level = np.clip(level_BN, -_LEVELS, _LEVELS).astype(np.int8).reshape(-1)[: values.size]
    return b"".join((scale_B.astype("<f4").tobytes(), level.tobytes()))


def _to_bfloat16(values: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.uint16]:
    # Bits of a float are ordered as its magnitude: adding below the cut carries in proportion.
    bits = values.astype(np.float32).view(np.uint32)
    sign, magnitude = bits & np.uint32(1 << 31), bits & np.uint32((1 << 31) - 1)
    carry = generator.integers(0, 1 << 16, size=values.size, dtype=np.uint32)
    rounded = np.minimum(magnitude + carry, _LARGEST_BFLOAT16 | np.uint32(0xFFFF))
    found: NDArray[np.uint16] = ((sign | rounded) >> np.uint32(16)).astype(np.uint16)
    return found


def decode(payload: bytes, size: int, encoding: Encoding) -> Tensor:
    """Return what `encode` was given, up to rounding: (size,) float32.

    Raises:
        MessageError: another length, or a number that is not finite.
    """
    if len(payload) != encoded_size(size, encoding):
        raise MessageError(f"{len(payload)} bytes are not {size} numbers as {encoding}.")
    if encoding == "float32":
        values = np.frombuffer(payload, dtype="<f4").astype(np.float32)
    elif encoding == "bfloat16":
        wide = np.frombuffer(payload, dtype="<u2").astype(np.uint32) << np.uint32(16)
        values = wide.view(np.float32)
    else:
        blocks = -(-size // BLOCK)
        scale_B = np.frombuffer(payload, dtype="<f4", count=blocks).astype(np.float32)
        level = np.frombuffer(payload, dtype=np.int8, offset=4 * blocks)
        # Nothing below is checked twice: an infinite scale makes the product not finite.
        with np.errstate(invalid="ignore", over="ignore"):
            values = level.astype(np.float32) * np.repeat(scale_B, BLOCK)[:size]
    if not np.isfinite(values).all():
        raise MessageError("the update holds numbers that are not finite.")
    return torch.from_numpy(values.copy())
