"""What an aggregator and a merchant hand to each other before they are connected.

Both are public: an invitation for merchants, an enrolment for the aggregator.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

from silotune.config import config, from_mapping
from silotune.errors import ConfigError

__all__ = ["Enrolment", "Invitation", "read_enrolment"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST = 8192


@config
class Invitation:
    """Where an aggregator is, and how a merchant knows that it is the one."""

    name: str
    """Of the aggregator, for people."""
    address: str
    """HOST:PORT of the listener for merchants."""
    certificate_sha256: str
    """Of the server certificate, DER, hexadecimal. The connection is refused on any other."""
    ca: str
    """Certificate of the authority that signed it, PEM."""

    def __post_init__(self) -> None:
        """Check forms. Raises ConfigError."""
        if not _DIGEST.fullmatch(self.certificate_sha256):
            raise ConfigError("certificate_sha256 must be 64 hexadecimal digits, lower case.")
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"address is {self.address!r}; write HOST:PORT.")

    @property
    def identity(self) -> str:
        """How a merchant's policy names this aggregator."""
        return f"sha256:{self.certificate_sha256}"


@config
class Enrolment:
    """All that an aggregator learns of a merchant before it trains."""

    name: str
    public_key: str
    """Of the node, ECDSA P-384, PEM."""
    nominal_users: int
    """Declared by the merchant, rough on purpose."""

    def __post_init__(self) -> None:
        """Check forms. Raises ConfigError."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"name is {self.name!r}; letters, digits, '-', '_' and '.'.")
        if self.nominal_users <= 0:
            raise ConfigError(f"nominal_users is {self.nominal_users}; it must be > 0.")

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_enrolment(path: Path) -> Enrolment:
    """Read a merchant's enrolment file. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8") as file:
            raw = json.loads(file.read(_LONGEST + 1)[:_LONGEST])
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `silotune client enrol` writes it.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not an enrolment file ({error}).") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: not an enrolment file.")
    return from_mapping(Enrolment, raw, where=str(path))
