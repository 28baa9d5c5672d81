"""``silotune server doctor`` and ``silotune client doctor``: a line for each check.

``health`` beside it asks the running processes only, in no time: for containers and scripts.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from silotune.doctor import Finding

__all__ = ["add_client", "add_server"]

_Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def add_server(group: typer.Typer) -> None:
    """Add the command to ``silotune server``."""

    @group.command("doctor")
    def _doctor(
        folder: Annotated[
            Path, typer.Argument(metavar="DIR", help="The aggregator's folder.", show_default=False)
        ],
        as_json: _Json = False,
    ) -> None:
        """Check certificates, clock, ports, permissions, disk, versions; exit 1 on a failure."""
        from server.doctor import server_findings

        _show(server_findings(folder), as_json=as_json)

    @group.command("health")
    def _health(
        folder: Annotated[
            Path, typer.Argument(metavar="DIR", help="The aggregator's folder.", show_default=False)
        ],
    ) -> None:
        """Say whether the running aggregator is well; exit 1 where it is not."""
        _ask(folder)


def add_client(group: typer.Typer) -> None:
    """Add the command to ``silotune client``."""

    @group.command("doctor")
    def _doctor(
        folder: Annotated[
            Path, typer.Argument(metavar="SILO", help="The silo's folder.", show_default=False)
        ],
        as_json: _Json = False,
    ) -> None:
        """Check aggregator, clock, ledger, policy, permissions, GPU; exit 1 on a failure."""
        from client.doctor import client_findings

        _show(client_findings(folder), as_json=as_json)

    @group.command("health")
    def _health(
        folder: Annotated[
            Path, typer.Argument(metavar="SILO", help="The silo's folder.", show_default=False)
        ],
    ) -> None:
        """Say whether the running silo is well; exit 1 where it is not."""
        _ask(folder)


def _ask(folder: Path) -> None:
    import http.client

    from silotune.supervision import read_state

    well, said = False, "not running\n"
    # Its words come from a file: the address of a folder that runs no more may be another's now.
    url = _address(folder) if read_state(folder) is not None else None
    if url is not None:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            well, said = answer.status == 200, answer.read(10_000).decode("utf-8", "replace")
        except OSError as error:
            said = f"{url}: {error}\n"
        finally:
            connection.close()
    typer.echo(said, nl=False)
    if not well:
        raise typer.Exit(1)


def _address(folder: Path) -> str | None:
    # `silotune.observe.read_url` without its web server: this is called every minute.
    try:
        text = (folder / "run" / "observe.json").read_text(encoding="utf-8")
        return str(json.loads(text)["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _show(findings: "list[Finding]", *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        for one in findings:
            state = typer.style(f"{one.state:<4}", fg=_COLOURS[one.state], bold=True)
            typer.echo(f"{state}  {one.name:<12} {one.found}")
            if one.remedy:
                typer.echo(f"{'':<18} → {one.remedy}")
    if any(f.state == "fail" for f in findings):
        raise typer.Exit(1)
