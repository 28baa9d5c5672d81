"""What crosses between aggregator and silo: one flat float32 array and one checked request.

Two requests: train from an adapter, and measure one.

Every message is read as hostile: exact keys, one array of the agreed length, finite numbers,
a size limit before anything is parsed.
"""

import json
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from silotune.config import config, from_mapping
from silotune.encoding import Encoding, decode, encoded_size
from silotune.errors import ConfigError, MessageError

__all__ = [
    "PROTOCOL",
    "MetricsRequest",
    "TrainRequest",
    "read_reply",
    "read_request",
    "reply",
    "request",
]

PROTOCOL = 1
"""Changes when the meaning of a message does."""

_MAX_REQUEST = 16_384
_FLAT = "flat"
_NAMES = ("job", "task", "model", "base_digest", "layout_digest")

_Request = TypeVar("_Request", "TrainRequest", "MetricsRequest")


@config
class TrainRequest:
    """What the aggregator asks of a silo. The silo accepts it whole or refuses it."""

    job: str
    """Which training this round belongs to; the ledger charges by it."""
    round: int
    """Counted from 0."""
    task: str
    """Name of what is learned."""
    model: str
    """Name of one of the models both sides have configured."""
    base_digest: str
    """Of the base model the adapter belongs to; 'none' for a model without text."""
    layout_digest: str
    """Of the adapter's names and shapes."""
    private: dict[str, float | str] | None = None
    """`privacy.dp_sgd.DPConfig`, steps and learning rate. None: training without privacy."""
    plain: dict[str, float | str] | None = None
    """`client.trainer.PlainConfig` and epochs; only a simulation's policy allows it."""
    encoding: Encoding = "float32"
    """How the update is to travel."""
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        """Check what holds for every request. Raises ConfigError."""
        _check_common(self)
        if (self.private is None) == (self.plain is None):
            raise ConfigError("exactly one of private and plain must be there.")


@config
class MetricsRequest:
    """Which noised sums the aggregator asks for, of one adapter on the silo's test examples."""

    job: str
    """Whose adapter it is; the ledger charges by it."""
    round: int
    """After which the adapter came out, counted from 0."""
    task: str
    """Name of what was learned."""
    model: str
    """Name of one of the models both sides have configured."""
    base_digest: str
    """Of the base model the adapter belongs to; 'none' for a model without text."""
    layout_digest: str
    """Of the adapter's names and shapes."""
    metrics: dict[str, float]
    """`privacy.metrics.MetricsPlan`."""
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        """Check what holds for every request. Raises ConfigError."""
        _check_common(self)


def _check_common(what: "TrainRequest | MetricsRequest") -> None:
    if what.protocol != PROTOCOL:
        raise ConfigError(f"protocol is {what.protocol}; this version speaks {PROTOCOL}.")
    if what.round < 0:
        raise ConfigError(f"round is {what.round}; it must not be negative.")
    for name in _NAMES:
        # They stay in a merchant's ledger for ever, and are shown in its terminal: half a
        # character cannot be written, and an escape sequence is a command.
        if not getattr(what, name).isprintable():
            raise ConfigError(f"{name} is {getattr(what, name)!r}; it must be printable.")


def request(what: TrainRequest | MetricsRequest, adapter_D: Tensor) -> RecordDict:
    """Pack a request and the adapter to start from or to measure, (D,) float32."""
    return RecordDict(
        {
            "adapter": _pack(adapter_D),
            "request": ConfigRecord({"json": json.dumps(asdict(what))}),
        }
    )


def reply(release: Tensor, name: str) -> RecordDict:
    """Pack a silo's release, 'update' or 'metrics'. Nothing else leaves with it.

    Args:
        release: (D,) float32, or (bytes,) uint8 as `silotune.encoding` makes them.
        name: of the release.
    """
    return RecordDict({name: _pack(release)})


def read_request(content: RecordDict, kind: type[_Request]) -> tuple[_Request, Tensor]:
    """Unpack and check what the aggregator sent, as the ``kind`` that its message type is for.

    Raises:
        MessageError: anything but the two records, a request that is too large, not JSON or
            not a ``kind``, or an array that is not one finite float32 vector.
    """
    _exact_keys(content, {"adapter", "request"})
    fields = content["request"]
    if not isinstance(fields, ConfigRecord) or set(fields) != {"json"}:
        raise MessageError("request record must hold 'json' and nothing else.")
    text = fields["json"]
    if not isinstance(text, str) or len(text) > _MAX_REQUEST:
        raise MessageError(f"request must be text of at most {_MAX_REQUEST} characters.")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageError("request is not JSON.") from error
    if not isinstance(raw, dict):
        raise MessageError("request is not a JSON object.")
    try:
        what = from_mapping(kind, raw, where="request")
    except ConfigError as error:
        raise MessageError(str(error)) from error
    return what, _unpack(content["adapter"], None)


def read_reply(content: RecordDict, size: int, name: str, encoding: Encoding = "float32") -> Tensor:
    """Unpack and check a silo's release of that name, (size,) float32. Raises MessageError."""
    _exact_keys(content, {name})
    if encoding == "float32":
        return _unpack(content[name], size)
    packed = _unpack(content[name], encoded_size(size, encoding), kind="uint8")
    return decode(packed.numpy().tobytes(), size, encoding)


def _exact_keys(content: RecordDict, wanted: set[str]) -> None:
    if set(content) != wanted:
        raise MessageError(f"message holds {sorted(content)}; it must hold {sorted(wanted)}.")


def _pack(flat: Tensor) -> ArrayRecord:
    kept = flat if flat.dtype == torch.uint8 else flat.float()
    return ArrayRecord({_FLAT: Array(kept.detach().cpu().numpy())})


def _unpack(record: Any, size: int | None, kind: Literal["float32", "uint8"] = "float32") -> Tensor:
    if not isinstance(record, ArrayRecord) or set(record) != {_FLAT}:
        raise MessageError(f"array record must hold '{_FLAT}' and nothing else.")
    array = record[_FLAT]
    # The declared shape is checked against the bytes before anything is allocated.
    if array.dtype != kind or len(array.shape) != 1:
        raise MessageError(f"array is {array.dtype} {tuple(array.shape)}; one {kind} vector.")
    count, width = array.shape[0], np.dtype(kind).itemsize
    if (size is not None and count != size) or len(array.data) > width * count + 1024:
        raise MessageError(f"array of {count} numbers in {len(array.data)} bytes; expected {size}.")
    try:
        values: np.ndarray[Any, Any] = array.numpy()
    except (ValueError, TypeError, EOFError) as error:
        raise MessageError("array cannot be read.") from error
    if values.dtype != np.dtype(kind) or values.shape != (count,) or not np.isfinite(values).all():
        raise MessageError(f"array is not a vector of finite {kind} numbers.")
    return torch.from_numpy(values.copy())
