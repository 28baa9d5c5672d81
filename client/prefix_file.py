"""The file of one set of texts: their activations, and an index with a checksum of each.

```
header | keys | lengths | checksums | 0 to a whole page | activations, token-major
```

Shape suffixes: U texts, N tokens of all texts one after another, T tokens, H hidden size.
"""

import hashlib
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Layout", "StoredSet", "Texts", "index_of", "read_set"]

_MAGIC = b"silotune prefix2"
_HEADER = struct.Struct("<16s32sQQQd")
_CHECK = 16
_INDEX = 16 + 4 + 4
"""Bytes of one text in the index: key, length, checksum."""
_PAGE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """The distinct texts of a set, in the order of their tokens."""

    keys: list[bytes]
    """128-bit hash of each text's token ids."""
    length_U: NDArray[np.int64]
    start_U: NDArray[np.int64]
    """Where each text begins among the tokens."""

    @classmethod
    def of(cls, ids_N: NDArray[np.int32], length_U: NDArray[np.int64]) -> "Texts":
        """Hash the token ids of every text, which lie one after another in ``ids_N``."""
        parts = np.split(ids_N, np.cumsum(length_U)[:-1])
        keys = [hashlib.blake2b(p.tobytes(), digest_size=16).digest() for p in parts]
        return cls.at(keys, length_U)

    @classmethod
    def at(cls, keys: list[bytes], length_U: NDArray[np.int64]) -> "Texts":
        """Place texts one after another."""
        return cls(keys, length_U, (np.cumsum(length_U) - length_U).astype(np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def tokens(self) -> int:
        """Tokens of all texts, N."""
        return int(self.length_U.sum())

    @property
    def digest(self) -> str:
        """Names the set: which texts, in which order."""
        return hashlib.sha256(b"".join(self.keys) + self.length_U.tobytes()).hexdigest()

    def rows(self, states_NH: Tensor, index: int) -> Tensor:
        """Return the activations of one text, (T, H), a view."""
        start = int(self.start_U[index])
        return states_NH[start : start + int(self.length_U[index])]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file must be about for its numbers to mean anything."""

    scope: bytes
    """32 bytes that stand for everything but the tokens that the activations depend on."""
    hidden: int
    dtype: torch.dtype

    @property
    def row(self) -> int:
        """Bytes of one token."""
        return self.hidden * self.dtype.itemsize

    def offset(self, texts: int) -> int:
        """Byte at which the activations begin."""
        return -(-(_HEADER.size + _CHECK + _INDEX * texts) // _PAGE) * _PAGE

    def size(self, texts: Texts) -> int:
        """Bytes of the whole file."""
        return self.offset(len(texts)) + texts.tokens * self.row

    def states(self, mapped: mmap.mmap, texts: Texts) -> Tensor:
        """Return the activations in a mapped file, (N, H)."""
        count, offset = texts.tokens * self.hidden, self.offset(len(texts))
        flat = torch.frombuffer(mapped, dtype=self.dtype, count=count, offset=offset)
        return flat.view(texts.tokens, self.hidden)


@dataclass(frozen=True, slots=True, eq=False)
class StoredSet:
    """A file that is there: its index has been checked, its activations not yet."""

    texts: Texts
    crc_U: NDArray[np.uint32]
    token_seconds: float
    """What a token took to compute; NaN where nobody knows."""
    states_NH: Tensor

    def whole(self, index: int) -> bool:
        """Tell whether the activations of one text are those that were written."""
        return _crc(self.texts.rows(self.states_NH, index)) == int(self.crc_U[index])

    def all_whole(self) -> bool:
        """Tell whether all activations are those that were written."""
        return all(self.whole(index) for index in range(len(self.texts)))


def index_of(layout: Layout, texts: Texts, states_NH: Tensor, token_seconds: float) -> bytes:
    """Return what stands in front of ``states_NH`` in the file."""
    crcs = [_crc(texts.rows(states_NH, index)) for index in range(len(texts))]
    index = b"".join(texts.keys) + texts.length_U.astype(np.uint32).tobytes()
    index += np.array(crcs, dtype=np.uint32).tobytes()
    head = _HEADER.pack(_MAGIC, layout.scope, len(texts), texts.tokens, layout.row, token_seconds)
    return (head + _checksum(head + index) + index).ljust(layout.offset(len(texts)), b"\0")


def read_set(path: Path, layout: Layout) -> StoredSet | None:
    """Return the set in ``path``; None where it is not there, another one, or damaged.

    The activations are mapped, not read: the page cache shares one copy among all processes
    of the machine. What is written into the tensor stays out of the file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEADER.size)
            check = file.read(_CHECK)
            if len(check) < _CHECK:
                return None
            magic, scope, count, tokens, row, seconds = _HEADER.unpack(head)
            if (magic, scope, row) != (_MAGIC, layout.scope, layout.row):
                return None
            # Bounded by the file before anything is read by these numbers.
            if size != layout.offset(count) + tokens * row:
                return None
            index = file.read(_INDEX * count)
            if _checksum(head + index) != check:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):
        return None
    keys = [index[16 * u : 16 * u + 16] for u in range(count)]
    length_U = np.frombuffer(index, np.uint32, count, 16 * count).astype(np.int64)
    crc_U = np.frombuffer(index, np.uint32, count, 20 * count)
    texts = Texts.at(keys, length_U)
    return StoredSet(texts, crc_U, seconds, layout.states(mapped, texts))


def _crc(rows_TH: Tensor) -> int:
    return zlib.crc32(rows_TH.reshape(-1).view(torch.uint8).numpy().data)


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECK).digest()
