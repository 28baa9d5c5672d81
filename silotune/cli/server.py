"""``silotune server``: the aggregator."""

import json
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from silotune.cli.dashboard import dashboard_line, show_dashboard
from silotune.cli.doctor import add_server

__all__ = ["register"]

_Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The aggregator's folder.", show_default=False)
]
_Own = Annotated[Path | None, typer.Option(help="PEM, of your own.", show_default=False)]

_group = typer.Typer(no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to ``root``."""
    add_server(_group)
    root.add_typer(_group, name="server", help="The aggregator: start it, enrol merchants, train.")


@_group.command("init")
def _init(
    folder: _Folder,
    address: Annotated[str, typer.Option(help="HOST:PORT that merchants use.")] = "127.0.0.1:18443",
    name: Annotated[str, typer.Option(help="Of the aggregator, for people.")] = "aggregator",
    listen: Annotated[str, typer.Option(help="Address of the network interface.")] = "0.0.0.0",  # noqa: S104
    certificate: _Own = None,
    key: _Own = None,
    ca: _Own = None,
    start: Annotated[bool, typer.Option("--start", help="Start it too.")] = False,
) -> None:
    """Make the folder DIR: certificates, secret, server.toml, and the invitation for merchants."""
    from server.setup import init
    from silotune.errors import ConfigError

    own = (certificate, key, ca)
    if any(own) and not all(own):
        raise ConfigError("give all of --certificate, --key and --ca, or none.")
    brought = tuple(p.resolve() for p in own if p is not None)
    made = init(
        folder,
        name=name,
        address=address,
        listen=listen,
        own=(brought[0], brought[1], brought[2]) if brought else None,
    )
    typer.echo(f"{folder}: merchants need {folder / 'invitation.toml'}.\nIt is {made.identity}.")
    if start:
        _start(folder)


@_group.command("renew")
def _renew(folder: _Folder) -> None:
    """Make a new server certificate and invitation; every merchant needs the invitation."""
    from server.setup import renew

    made = renew(folder)
    typer.echo(
        f"{folder}: stop and start it. Merchants put {folder / 'invitation.toml'} under [server] "
        f"in client.toml and its digest under servers in policy.toml.\nIt is {made.identity}."
    )


@_group.command("start")
def _start(
    folder: _Folder,
    foreground: Annotated[bool, typer.Option(help="Stay; for systemd.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds until all must be ready.")] = 180.0,
) -> None:
    """Start SuperLink and executor, and keep them running."""
    from server.certificates import check_dates
    from server.config import read_server

    settings = read_server(folder)
    check_dates(folder / settings.certificate)
    if foreground:
        from server.start import main

        main(folder)
        return
    from silotune.supervision import launch, wait_until_ready

    launched = launch(folder, ["-m", "server.start", str(folder.resolve())])
    wait_until_ready(folder, launched, wait)
    typer.echo(f"{folder}: merchants come in at {settings.public_address}.")
    typer.echo(f"  {dashboard_line('server', folder)}")


@_group.command("enrol")
def _enrol(
    folder: _Folder,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Of merchants.", show_default=False)
    ],
) -> None:
    """Let merchants in by their enrolment files."""
    _let_in(folder, files)


def _let_in(folder: Path, files: list[Path]) -> None:
    from server.setup import enrol
    from silotune.invitation import read_enrolment

    for file in files:
        node = enrol(folder, file)
        asked = read_enrolment(file)
        typer.echo(f"{asked.name}: node {node}, {asked.nominal_users} users declared.")


def _files_of(enrolments: Path) -> list[Path]:
    from silotune.errors import ConfigError

    files = sorted(enrolments.glob("*.json")) if enrolments.is_dir() else [enrolments]
    if not files:
        raise ConfigError(f"{enrolments}: holds no enrolment; merchants send them as NAME.json.")
    return files


@_group.command("run")
def _run(
    folder: _Folder,
    file: Annotated[Path, typer.Argument(metavar="RUN.toml", show_default=False)],
    enrol: Annotated[
        Path | None,
        typer.Option(help="First let in the merchants of this folder or file.", show_default=False),
    ] = None,
    detach: Annotated[bool, typer.Option(help="Queue it and return.")] = False,
) -> None:
    """Train as RUN.toml says, and show each round. Interrupting this does not stop the run."""
    from server.runs import submit
    from server.setup import control

    if enrol is not None:
        _let_in(folder, _files_of(enrol))
    with control(folder):
        pass
    run = submit(folder, file)
    typer.echo(f"run '{run.name}': {run.folder}")
    if not detach:
        _follow(run.folder)


def _follow(folder: Path) -> None:
    """Print each round of the run in ``folder`` until it ends; exit 2 when it failed."""
    shown = 0
    while True:
        # The state first: what it tells to have happened is then in the records.
        now = _run_in(folder)
        for record in now["records"][shown:]:
            typer.echo(
                f"round {record['round']}: {record['replies']} updates, "
                f"{record['failures']} failed, {record['seconds']:.1f} s"
            )
        shown = len(now["records"])
        if now["state"] in ("finished", "failed"):
            break
        time.sleep(0.3)
    typer.echo(f"run '{folder.name}' {now['state']}. {now['message']}".rstrip())
    if now["state"] == "failed":
        raise typer.Exit(2)


@_group.command("status")
def _status(
    folder: _Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the newest run's rounds until it ends.")
    ] = False,
) -> None:
    """Show processes, merchants and runs."""
    found = _gather(folder)
    if follow and not found["runs"]:
        raise typer.BadParameter(f"{folder} has no run yet.", param_hint="--follow")
    if follow:
        _follow(folder / "runs" / found["runs"][-1]["name"])
        return
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, process in found["processes"].items():
        ready = "ready" if process.get("ready") else "starting"
        typer.echo(f"{name}: {ready}, process {process['pid']}, started {process['starts']} times")
    typer.echo(dashboard_line("server", folder) if found["processes"] else "not running")
    for merchant in found["merchants"]:
        typer.echo(f"merchant {merchant['name']}: {merchant['status']}")
    for run in found["runs"]:
        typer.echo(
            f"run {run['name']}: {run['state']}, {run['rounds_done']} of {run['rounds']} rounds"
            + (f". {run['message']}" if run["message"] else "")
        )


@_group.command("dashboard")
def _dashboard(
    folder: _Folder,
    launch: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Print the address of the dashboard, with its token: rounds, quality, merchants, runs."""
    from server.config import read_server

    read_server(folder)
    show_dashboard("server", folder, launch=launch)


@_group.command("stop")
def _stop(folder: _Folder) -> None:
    """Stop it; a run in progress goes on at the next start."""
    from silotune.supervision import stop

    typer.echo(f"{folder}: {'stopped' if stop(folder) else 'was not running'}.")


def _gather(folder: Path) -> dict[str, Any]:
    from server.setup import control
    from silotune.errors import ConfigError
    from silotune.invitation import read_enrolment
    from silotune.supervision import read_state

    state = read_state(folder) or {"processes": {}}
    nodes = {}
    try:
        with control(folder) as link:
            nodes = {n.public_key.decode(): n for n in link.nodes()}
    except ConfigError:
        if not (folder / "server.toml").exists():
            raise
    merchants = []
    for path in sorted((folder / "merchants").glob("*.json")):
        one = read_enrolment(path)
        node = nodes.get(one.public_key)
        merchants.append(
            {
                "name": one.name,
                "nominal_users": one.nominal_users,
                "node": node.node_id if node else None,
                "status": node.status if node else "unknown",
            }
        )
    runs = [_run_in(p.parent) for p in (folder / "runs").glob("*/status.json")]
    runs.sort(key=lambda run: run["submitted"])
    return {"processes": state["processes"], "merchants": merchants, "runs": runs}


def _run_in(folder: Path) -> dict[str, Any]:
    # Plain files: what checks them would import torch.
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    asked = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    records = _rounds(folder / "rounds")
    return {
        "name": folder.name,
        "state": status["state"],
        "message": status["message"],
        "submitted": status["submitted"],
        "starts": status["starts"],
        "rounds": asked["job"].get("rounds"),
        "rounds_done": len(records),
        "records": records,
    }


def _rounds(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rounds.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]
