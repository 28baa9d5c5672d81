"""Activations of the frozen layers on disk: one file per set of texts, in the silo's cache.

The files are raw customer data in another form: the texts can be told from them. They lie in
a folder of mode 0700 within the silo, mode 0600 each, never leave it and are deleted with it.

``prefix-SCOPE-SET.bin``: SCOPE is what computed them (base, tokenizer, depth, precision, ...),
SET the texts in their order. A text that any set of the scope holds is copied, not computed.
A file is written under another name, locked while its writer lives, and renamed; every text
has a checksum, so that a file that a crash or a disk has damaged costs only the damaged texts.

Shape suffixes: U texts, N tokens of all texts one after another, H hidden size.
"""

import contextlib
import hashlib
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.prefix_file import Layout, StoredSet, Texts, index_of, read_set
from client.whole_file import become, claimed, open_private, remove_abandoned

__all__ = ["Fill", "Memory", "PrefixStore"]

_DISK_SHARE = 0.25
"""Default budget of one silo: of the disk that is free or already the cache's."""

Fill = Callable[[NDArray[np.int64], Tensor], float]
"""Computes the texts of the given indices into their rows of an (N, H) tensor; returns the
seconds that a token took, NaN when nobody knows."""

_Place = tuple[StoredSet, NDArray[np.int64]]
"""A set, and where each wanted text lies in it, (U,); -1 where it does not."""


class Memory:
    """Keeps nothing beyond the process: for data without a folder."""

    def __init__(self, hidden: int, dtype: torch.dtype) -> None:
        self._hidden, self._dtype = hidden, dtype
        self.token_seconds = float("nan")

    def get(self, texts: Texts, fill: Fill) -> Tensor | None:
        """Compute every text. Arguments and result: as `PrefixStore.get`."""
        states_NH = torch.empty((texts.tokens, self._hidden), dtype=self._dtype)
        self.token_seconds = fill(np.arange(len(texts)), states_NH)
        return states_NH


class PrefixStore:
    """The sets of one scope in one silo's cache.

    Args:
        folder: made where it is missing, mode 0700.
        scope: whatever else the activations depend on, as text.
        hidden: numbers per token, H.
        dtype: of the numbers.
        budget: bytes that the sets of all scopes may take; None: a quarter of the disk that is
            free or already theirs. The sets used longest ago are dropped first.
        wait: seconds to wait for another process that writes the same set.
    """

    def __init__(
        self,
        folder: Path,
        scope: str,
        hidden: int,
        dtype: torch.dtype,
        *,
        budget: int | None = None,
        wait: float = 600.0,
    ) -> None:
        digest = hashlib.sha256(f"{scope} {hidden} {dtype}".encode()).digest()
        self._folder, self._layout = folder, Layout(digest, hidden, dtype)
        self._budget, self._wait = budget, wait
        self.token_seconds = float("nan")
        """Seconds that a token of the set returned last took to compute."""

    def get(self, texts: Texts, fill: Fill) -> Tensor | None:
        """Return the activations of ``texts``, (N, H), mapped from the disk.

        None where they do not fit into the budget or onto the disk, or another process holds
        the set for too long: training works without.

        Args:
            texts: distinct.
            fill: called, if at all, with the texts that no set holds.

        Raises:
            Exception: what ``fill`` raises, other than OSError; nothing is left of the set.
        """
        path = self._folder / f"prefix-{self._layout.scope.hex()[:16]}-{texts.digest[:32]}.bin"
        states_NH = self._use(path)
        if states_NH is not None:
            return states_NH
        try:
            return self._make(path, texts, fill)
        except OSError:
            # A full disk, a folder that cannot be written: work goes on without the store.
            return None

    def _use(self, path: Path) -> Tensor | None:
        found = read_set(path, self._layout)
        if found is None or not found.all_whole():
            return None
        with contextlib.suppress(OSError):  # another process may have dropped it
            os.utime(path)
        self.token_seconds = found.token_seconds
        return found.states_NH

    def _make(self, path: Path, texts: Texts, fill: Fill) -> Tensor | None:
        open_private(self._folder)
        remove_abandoned(self._folder)
        with claimed(path, self._wait) as file:
            if file is None:
                return None
            # Another process may have made it while this one waited.
            states_NH = self._use(path)
            if states_NH is not None:
                return states_NH
            # Opened before anything is dropped: a dropped file can still be read from.
            known = self._known(texts)
            size = self._layout.size(texts)
            if not self._make_room(size, path):
                return None
            # Before it is mapped: writing to a mapped page that the disk has no room for
            # would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_WRITE)
            states_NH = self._layout.states(mapped, texts)
            missing = _borrow(known, texts, states_NH)
            seconds = fill(missing, states_NH) if len(missing) else known[0][0].token_seconds
            index = index_of(self._layout, texts, states_NH, seconds)
            mapped[: len(index)] = index
            become(file, path)
            return self._use(path)

    def _known(self, texts: Texts) -> list[_Place]:
        """Return the sets of the scope that hold some of ``texts``, used last first."""
        known: list[_Place] = []
        left = np.ones(len(texts), dtype=bool)
        paths = self._folder.glob(f"prefix-{self._layout.scope.hex()[:16]}-*.bin")
        for path in sorted(paths, key=_used_at, reverse=True):
            found = read_set(path, self._layout) if left.any() else None
            if found is None:
                continue
            places = {key: index for index, key in enumerate(found.texts.keys)}
            place_U = np.array([places.get(key, -1) for key in texts.keys], dtype=np.int64)
            # Before it counts as known: a damaged text may be whole in another set.
            whole = [place >= 0 and found.whole(place) for place in place_U.tolist()]
            place_U[~(left & whole)] = -1
            left &= place_U < 0
            if (place_U >= 0).any():
                known.append((found, place_U))
        return known

    def _make_room(self, size: int, path: Path) -> bool:
        """Drop the sets used longest ago until ``size`` bytes fit; False: they never do."""
        sets = {p: p.stat().st_size for p in self._folder.glob("prefix-*.bin") if p != path}
        used = sum(sets.values())
        budget = self._budget
        if budget is None:
            budget = int(_DISK_SHARE * (shutil.disk_usage(self._folder).free + used))
        if size > budget:
            return False
        for old in sorted(sets, key=_used_at):
            if used + size <= budget:
                break
            used -= sets[old]
            old.unlink(missing_ok=True)
        return True


def _borrow(known: list[_Place], texts: Texts, states_NH: Tensor) -> NDArray[np.int64]:
    """Copy the texts that other sets hold; return the indices of those left."""
    missing = np.ones(len(texts), dtype=bool)
    for found, place_U in known:
        for index in np.flatnonzero(place_U >= 0).tolist():
            rows_TH = found.texts.rows(found.states_NH, int(place_U[index]))
            texts.rows(states_NH, index)[:] = rows_TH
        missing &= place_U < 0
    return np.flatnonzero(missing)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
