"""The aggregator's folder and its ``server.toml``.

```
server.toml          this file's `ServerConfig`
ca.crt, ca.key       the authority, made here unless the operator brings certificates
server.crt, .key     of the listener for merchants
invitation.toml      for merchants: address, authority, digest of the server certificate
superexec.secret     what takes tasks from the SuperLink, mode 0600
state.db             the SuperLink's
merchants/NAME.json  enrolments, and in NAME.node the number of each node
runs/NAME/           run.toml, status.json, rounds/
run/, logs/          of the running processes
```
"""

from pathlib import Path

from silotune.config import config, from_toml
from silotune.errors import ConfigError
from silotune.observe_config import ObserveConfig

__all__ = ["ServerConfig", "read_server"]


@config
class ServerConfig:
    """Where the aggregator listens, and with which certificate."""

    name: str
    """For people."""
    host: str = "0.0.0.0"  # noqa: S104  # merchants are elsewhere; the listener is filtered
    """Address of the network interface that merchants come in by."""
    port: int = 18443
    public_address: str
    """HOST:PORT that merchants use."""
    certificate: str = "server.crt"
    """PEM, the server's own first; relative to this folder or absolute."""
    key: str = "server.key"
    ca: str = "ca.crt"
    """Of the authority that signed the certificate; merchants get it with the invitation."""
    request_bytes_max: int = 64 * 2**20
    """Bytes of one request of a merchant's node. Arrays travel in pieces of 5 MB."""
    observe: ObserveConfig = ObserveConfig()
    """Metrics, health and dashboard for the operator."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not 0 < self.port < 65536:
            raise ConfigError(f"port is {self.port}; it must be 1 to 65535.")
        if self.request_bytes_max < 6 * 2**20:
            raise ConfigError(
                f"request_bytes_max is {self.request_bytes_max}; nodes send pieces of 5 MB."
            )


def read_server(folder: Path) -> ServerConfig:
    """Read the configuration of the aggregator in ``folder``. Raises ConfigError."""
    path = folder / "server.toml"
    if not path.exists():
        raise ConfigError(f"{folder}: has no server.toml; make one with `silotune server init`.")
    return from_toml(ServerConfig, path)
