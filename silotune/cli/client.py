"""``silotune client``: a merchant's own side."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silotune.cli.dashboard import dashboard_line, show_dashboard
from silotune.cli.doctor import add_client
from silotune.cli.use import add_use

if TYPE_CHECKING:
    from privacy.ledger_report import LedgerRow

__all__ = ["register"]

_Path = Annotated[Path, typer.Argument(metavar="LEDGER", show_default=False)]
_Anchor = Annotated[
    Path | None, typer.Option(help="The ledger's anchor, where it is not beside it.")
]

_Silos = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Silo folders.", show_default=False)
]

_group = typer.Typer(no_args_is_help=True)
_ledger = typer.Typer(no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to ``root``."""
    _group.add_typer(_ledger, name="ledger", help="What was spent, and what left.")
    add_client(_group)
    add_use(_group)
    root.add_typer(_group, name="client", help="A merchant's own side: take part, and its ledger.")


@_group.command("init")
def _init(
    folders: _Silos,
    invitation: Annotated[Path, typer.Option(help="File of the aggregator.", show_default=False)],
    run: Annotated[Path, typer.Option(help="Its run file: task and model.", show_default=False)],
    epsilon: Annotated[float, typer.Option(help="Budget of each customer.")] = 8.0,
    data: Annotated[
        str | None,
        typer.Option(
            help="Make DIR first, as `silotune data import` does: a folder of Parquet or CSV "
            "files, or postgresql://user@host/database. With --name and --nominal-users.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Public name.", show_default=False)] = None,
    nominal_users: Annotated[
        int | None,
        typer.Option(help="Number of customers to declare, roughly; public.", show_default=False),
    ] = None,
    enrolments: Annotated[
        Path | None,
        typer.Option(help="Write the enrolment files into this folder too.", show_default=False),
    ] = None,
) -> None:
    """Make silo folders of `silotune data import` ready: client.toml, policy.toml, node key."""
    from client.setup import init

    if data is not None or name is not None or nominal_users is not None:
        _import_first(folders, data, name, nominal_users)
    for folder in folders:
        identity = init(folder, invitation, run, epsilon=epsilon)
        typer.echo(f"{folder}: read {folder / 'policy.toml'} before you start.")
    typer.echo(f"The aggregator must be {identity}; ask it by telephone.")
    if enrolments is not None:
        _enrol(folders, enrolments)


def _import_first(
    folders: list[Path], data: str | None, name: str | None, nominal_users: int | None
) -> None:
    from silotune.cli.data import import_silo
    from silotune.errors import ConfigError

    if data is None or name is None or nominal_users is None:
        raise ConfigError("give all of --data, --name and --nominal-users, or none.")
    if len(folders) > 1:
        raise ConfigError("--data makes one folder; name one.")
    import_silo(data, folders[0], name=name, nominal_users=nominal_users)


@_group.command("enrol")
def _enrol(
    folders: _Silos,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json.", show_default=False)] = Path(),
) -> None:
    """Write the enrolment file of each silo, for the aggregator: name, public key, users."""
    from client.setup import enrolment

    out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        made = enrolment(folder)
        (out / f"{made.name}.json").write_text(made.text(), encoding="utf-8")
        typer.echo(f"{out / made.name}.json")


@_group.command("accept")
def _accept(
    folders: _Silos,
    run: Annotated[
        Path, typer.Option(help="The aggregator's run file; read it first.", show_default=False)
    ],
) -> None:
    """Let each silo answer another run of the aggregator, from its next start on."""
    from client.setup import accept

    for folder in folders:
        digest = accept(folder, run)
        typer.echo(f"{folder}: accepts {run.name}, sha256:{digest}.")


@_group.command("start")
def _start(
    folders: _Silos,
    foreground: Annotated[bool, typer.Option(help="Stay; for systemd. One folder.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds until all must be ready.")] = 600.0,
) -> None:
    """Start daemon and node of each silo, and keep them running."""
    from client.config import read_client
    from silotune.errors import ConfigError

    for folder in folders:
        read_client(folder)
    if foreground:
        from client.start import main

        if len(folders) > 1:
            raise ConfigError("--foreground starts one folder.")
        main(folders[0])
        return
    from silotune.supervision import launch, wait_until_ready

    # Each loads its model: beside one another.
    launched = [launch(f, ["-m", "client.start", str(f.resolve())]) for f in folders]
    for folder, process in zip(folders, launched, strict=True):
        wait_until_ready(folder, process, wait)
        typer.echo(f"{folder}: connected to {read_client(folder).server.address}.")
        typer.echo(f"  {dashboard_line('client', folder)}")


@_group.command("status")
def _status(
    folders: _Silos,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show the processes of each silo, what was spent and how many releases left."""
    from client.config import read_client
    from silotune.supervision import read_state

    found = []
    for folder in folders:
        read_client(folder)
        state = read_state(folder) or {"processes": {}}
        found.append({"folder": str(folder), "processes": state["processes"], **_spent(folder)})
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for one in found:
        processes = ", ".join(
            f"{name} {'ready' if p.get('ready') else 'starting'} (process {p['pid']})"
            for name, p in one["processes"].items()
        )
        typer.echo(f"{one['folder']}: {processes or 'not running'}")
        if processes:
            typer.echo(f"  {dashboard_line('client', Path(one['folder']))}")
        typer.echo(f"  {one['releases']} releases, ε = {one['epsilon']:.3f} spent")


def _spent(folder: Path) -> dict[str, float]:
    from privacy.chain import Chain
    from privacy.ledger_report import ledger_rows

    if not (folder / "ledger.db").exists():
        return {"releases": 0, "epsilon": 0.0}
    rows = ledger_rows(Chain.read(folder / "ledger.db"))
    return {
        "releases": sum(r.bytes > 0 for r in rows),
        "epsilon": rows[-1].epsilon if rows else 0.0,
    }


@_group.command("dashboard")
def _dashboard(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Silo.", show_default=False)],
    launch: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Print the address of a silo's dashboard, with its token: what was spent, what left."""
    from client.config import read_client

    read_client(folder)
    show_dashboard("client", folder, launch=launch)


@_group.command("stop")
def _stop(folders: _Silos) -> None:
    """Stop daemon and node of each silo; the release in hand is finished or its cost is spent."""
    from silotune.supervision import stop

    for folder in folders:
        typer.echo(f"{folder}: {'stopped' if stop(folder) else 'was not running'}.")


def _file(path: Path) -> Path:
    return path / "ledger.db" if path.is_dir() else path


@_ledger.command("show")
def _show(
    path: _Path,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a plot: .png, .svg or .pdf.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy with the budget to show.")] = None,
) -> None:
    """Print every reservation: its cost, what was spent with it, and what left.

    LEDGER: the ledger's file, or the silo folder with it.
    """
    from privacy.chain import Chain
    from privacy.ledger_report import ledger_rows
    from privacy.policy import Policy
    from silotune.config import from_toml

    budget = from_toml(Policy, policy).epsilon if policy else None
    rows = ledger_rows(Chain.read(_file(path)))
    if plot:
        from simulations.ledger_plot import save_ledger_plot

        save_ledger_plot(rows, plot, budget=budget)
    if as_json:
        typer.echo(json.dumps([asdict(r) for r in rows], indent=2))
    else:
        _print_rows(rows, budget)


def _print_rows(rows: "list[LedgerRow]", budget: float | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("entry", "UTC", "job", "round", "cost", "ε spent", "outcome", "bytes", "sha256"):
        table.add_column(name, justify="right" if name in ("ε spent", "bytes", "round") else "left")
    for r in rows:
        table.add_row(
            str(r.seq),
            r.when,
            r.job,
            str(r.round),
            r.cost,
            f"{r.epsilon:.3f}",
            r.outcome if r.private else f"{r.outcome}, not private",
            str(r.bytes or "–"),
            r.sha256[:12],
        )
    console = Console(markup=False)  # an aggregator chose the jobs' names
    console.print(table)
    spent, delta = (rows[-1].epsilon, f" at δ = {rows[-1].delta:g}") if rows else (0.0, "")
    left = "" if budget is None else f"; left of {budget:g}: {max(0.0, budget - spent):.3f}"
    console.print(f"Spent by each user: ε = {spent:.3f}{delta}{left}.", highlight=False)


@_ledger.command("verify")
def _verify(path: _Path, anchor: _Anchor = None) -> None:
    """Check every hash and the anchor, and compute ε again from every cost; exit 2 if wrong.

    LEDGER: the ledger's file, or the silo folder with it.
    """
    from privacy.ledger_report import verify

    found = verify(_file(path), anchor=anchor)
    at = "" if found.delta is None else f" at δ = {found.delta:g}"
    typer.echo(
        f"{_file(path)}: {found.entries} entries as written, {found.reservations} reservations, "
        f"{found.released} releases. Spent by each user: ε = {found.epsilon:.3f}{at}.\n"
        f"Newest entry: {found.head}"
    )


@_ledger.command("accept-clock")
def _accept_clock(path: _Path, anchor: _Anchor = None) -> None:
    """Record that the clock is right although it jumped; the ledger then goes on.

    LEDGER: the ledger's file, or the silo folder with it.
    """
    from privacy.ledger import Ledger
    from silotune.errors import LedgerError

    if not _file(path).exists():
        raise LedgerError(f"{_file(path)}: no such file; the first private training makes it.")
    with Ledger(_file(path), anchor=anchor, wait=5.0) as ledger:
        ledger.accept_clock()
    typer.echo(f"{_file(path)}: the clock is accepted from now on.")
