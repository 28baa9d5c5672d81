"""The table ``[observe]`` of server.toml and client.toml: where a side shows how it is."""

import ipaddress

from silotune.config import config
from silotune.errors import ConfigError

__all__ = ["ObserveConfig"]


@config
class ObserveConfig:
    """Address of metrics, health and dashboard. They are for whoever runs this side."""

    host: str = "127.0.0.1"
    """Loopback. A merchant's figures (training seconds, refusals) are made of its data and are
    not noised: who reads them from elsewhere sees more than any release tells."""
    port: int = 0
    """0: the system chooses, and ``run/observe.json`` says which. Name one for Prometheus."""
    expose: bool = False
    """Allow a host that is not loopback. The token is then all that protects, without TLS: put a
    proxy with TLS before it."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}; it must be 0 to 65535.")
        if not self.expose and not self.is_loopback:
            raise ConfigError(
                f"host is {self.host!r}, which other machines can reach; what is shown there is "
                "not noised. Use 127.0.0.1, or say expose = true if that is what you want."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
