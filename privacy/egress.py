"""The one way out of a silo. What does not pass whole stays.

A release is declared before it is made: which kind, how many numbers, under which mechanism.
The gate compares what came with what was declared and paid for, writes a receipt into the
hash-chained ledger, and only then gives the bytes back. Any doubt is an EgressError; the
reservation stays spent.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.ledger import Ledger, Reservation
from silotune.encoding import ENCODINGS, Encoding, decode, encode, encoded_size
from silotune.errors import EgressError, MessageError

__all__ = ["Declaration", "Gate", "Outgoing"]

_NAMES = frozenset({"update", "metrics", "centroids"})
_MECHANISMS = frozenset({"gaussian", "discrete-gaussian"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What a release is said to be, before it is made. All of it is public."""

    name: str
    """'update', 'metrics' or 'centroids'."""
    size: int
    """Numbers in it: of the adapter's layout, or of a plan. Never of the data."""
    mechanism: str
    """'gaussian', 'discrete-gaussian', or 'none' for a simulation without privacy."""
    norm_max: float
    """Largest L2 norm."""
    encoding: Encoding = "float32"
    """How the numbers travel. Rounding comes after the noise and costs no privacy."""
    bytes_max: int = 1 << 28


class Outgoing:
    """Numbers that passed the gate. Only a gate makes one."""

    __slots__ = ("_payload", "encoding", "name", "receipt", "size")

    def __init__(self, token: object, name: str, payload: bytes, receipt: dict[str, Any]) -> None:
        """Refuse every maker but this module. Raises EgressError."""
        if token is not _TOKEN:
            raise EgressError("only the egress gate makes what may leave.")
        self._payload, self.name, self.receipt = payload, name, receipt
        self.size, self.encoding = int(receipt["size"]), receipt["encoding"]

    def array(self) -> Tensor:
        """Return the bytes that the receipt speaks of: (size,) float32, or (bytes,) uint8."""
        kind = "<f4" if self.encoding == "float32" else np.uint8
        return torch.from_numpy(np.frombuffer(self._payload, dtype=kind).copy())

    def vector(self) -> Tensor:
        """Return the numbers as the other side will read them, (size,) float32."""
        return decode(self._payload, self.size, self.encoding)


_TOKEN = object()


class Gate:
    """Lets releases of one silo out, against reservations of its ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def release(
        self,
        reservation: Reservation,
        declared: Declaration,
        values: Tensor,
        *,
        private: bool,
        facts: dict[str, float | int | str],
    ) -> Outgoing:
        """Check ``values`` against what was declared, record them, and let them out.

        Args:
            reservation: open, and made for this release.
            declared: what it is.
            values: (size,) float32, already noised.
            private: False when the noise can be reproduced; the receipt says so.
            facts: of the mechanism and the request, for the receipt. Nothing of the data.

        Raises:
            EgressError: not what was declared. The reservation stays spent.
            LedgerError: the reservation is not open, or the receipt cannot be written.
        """
        if declared.mechanism not in _MECHANISMS:
            raise EgressError("a private release needs a mechanism that adds noise.")
        if not reservation.events:
            raise EgressError("a private release needs a cost.")
        payload = _checked(declared, values)
        receipt = _receipt(declared, facts) | {"private": bool(private)}
        entry = self._ledger.record_release(reservation, payload, receipt)
        return Outgoing(_TOKEN, declared.name, payload, entry.body)

    def release_unprotected(
        self, declared: Declaration, values: Tensor, *, facts: dict[str, float | int | str]
    ) -> Outgoing:
        """Let out what carries no guarantee: a policy must have allowed it by name.

        Raises:
            EgressError: not what was declared.
        """
        if declared.mechanism != "none":
            raise EgressError("a release without cost must declare that it has no mechanism.")
        payload = _checked(declared, values)
        entry = self._ledger.record_unprotected(payload, _receipt(declared, facts))
        return Outgoing(_TOKEN, declared.name, payload, entry.body)

    def again(self, request: str) -> Outgoing | None:
        """Return what answered ``request`` before: the same bytes, at no cost. Else None."""
        stored = self._ledger.stored(request)
        if stored is None:
            return None
        payload, entry = stored
        return Outgoing(_TOKEN, str(entry.body["name"]), payload, entry.body)

    def handed_over(self, out: Outgoing) -> None:
        """Record that ``out`` went to the transport."""
        if "reservation" in out.receipt:
            self._ledger.settle(int(out.receipt["reservation"]))


def _checked(declared: Declaration, values: Tensor) -> bytes:
    """Return the bytes of ``values`` if they are what was declared. Raises EgressError."""
    if declared.name not in _NAMES:
        raise EgressError("the release has a name that is not allowed.")
    # Exactly a tensor: a subclass could change between this check and its reading.
    if type(values) is not Tensor or values.layout is not torch.strided:
        raise EgressError(f"{declared.name}: is not a plain tensor.")
    if values.dtype != torch.float32 or tuple(values.shape) != (declared.size,):
        raise EgressError(f"{declared.name}: has another type or shape than declared.")
    if declared.encoding not in ENCODINGS:
        raise EgressError(f"{declared.name}: has an encoding that is not allowed.")
    if encoded_size(declared.size, declared.encoding) > declared.bytes_max:
        raise EgressError(f"{declared.name}: has more bytes than allowed.")
    # A copy first: what is checked is what is written.
    array = values.detach().cpu().numpy().astype("<f4", copy=True)
    if not np.isfinite(array).all():
        raise EgressError(f"{declared.name}: holds numbers that are not finite.")
    payload = _encoded(array, declared)
    # What is measured is what the other side will read, rounding included.
    try:
        read_D = decode(payload, declared.size, declared.encoding)
    except MessageError:
        raise EgressError(f"{declared.name}: cannot be read as {declared.encoding}.") from None
    norm = float(read_D.double().norm())
    if not (math.isfinite(declared.norm_max) and norm <= declared.norm_max):
        raise EgressError(f"{declared.name}: its norm is above the policy's limit.")
    return payload


def _encoded(array: NDArray[np.float32], declared: Declaration) -> bytes:
    # Directions of rounding are drawn from the numbers themselves: a function of what may
    # leave and of nothing else, and the same again in a run that is to be repeated.
    seed = int.from_bytes(hashlib.sha256(array.tobytes()).digest())
    return encode(array, declared.encoding, np.random.default_rng(seed))


def _receipt(declared: Declaration, facts: dict[str, float | int | str]) -> dict[str, Any]:
    for name, value in facts.items():
        if not isinstance(value, float | int | str):
            raise EgressError(f"receipt: {name} is not a plain value.")
    return {
        **facts,
        "name": declared.name,
        "size": declared.size,
        "mechanism": declared.mechanism,
        "encoding": declared.encoding,
    }
