"""``silotune privacy audit``: attack the silo's own training and compare with what is claimed."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silotune.errors import ConfigError

if TYPE_CHECKING:
    from client.audit_canaries import Subject
    from client.audit_run import AuditReport

__all__ = ["register"]

# Parts of the extra 'simulation'.
_EXTRA = ("markupsafe", "matplotlib")


def register(group: typer.Typer) -> None:
    """Add the command to ``group``, the commands of ``silotune privacy``."""
    group.command("audit")(_audit)


def _audit(
    silo: Annotated[
        Path | None,
        typer.Option(help="Silo folder. Default: 40 made-up customers.", show_default=False),
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="Task and model: a scenario's name or TOML file.")
    ] = "synthetic",
    noise_multiplier: Annotated[float, typer.Option(help="σ, noise over clip norm.")] = 2.0,
    sampling_rate: Annotated[float, typer.Option(help="q, chance of a user per step.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Steps of one release.")] = 4,
    clip_norm: Annotated[float, typer.Option(help="Bound of one user's gradient.")] = 4.0,
    learning_rate: Annotated[float, typer.Option(help="Of SGD on the noised mean.")] = 1.0,
    delta: Annotated[float, typer.Option(help="δ of the claim.")] = 1e-5,
    confidence: Annotated[float, typer.Option(help="Of each lower bound.")] = 0.95,
    canaries: Annotated[int, typer.Option(help="Canary users of the one run.")] = 2000,
    trials: Annotated[int, typer.Option(help="Independent single steps.")] = 4000,
    runs: Annotated[int, typer.Option(help="Trainings per membership target.")] = 200,
    text: Annotated[bool, typer.Option(help="With the language model.")] = True,
    seed: Annotated[
        int | None, typer.Option(help="Repeats the audit, with seeded noise.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML page with the plots.")] = Path("audit.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Train with canary users, attack what leaves, and compare with the claimed ε.

    Runs a silo's own training with the noise, clip, rate and steps given here. Exit code 1 if a
    lower bound lies above its claim. Nothing is released and nothing is charged; no row is shown.
    """
    try:
        from simulations.audit_plots import write_page
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        raise ConfigError(
            f"'{error.name}' is not installed. Plots need: pip install 'silotune[simulation]'."
        ) from error
    from client.audit import AuditConfig
    from client.audit_run import Effort, run_audit
    from privacy.dp_sgd import DPConfig

    settings = AuditConfig(
        privacy=DPConfig(
            clip_norm=clip_norm, noise_multiplier=noise_multiplier, sampling_rate=sampling_rate
        ),
        steps=steps,
        learning_rate=learning_rate,
        delta=delta,
        confidence=confidence,
    )
    effort = Effort(canaries=canaries, trials=trials, runs=runs)
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: its folder does not exist.")
    with _stages(quiet=quiet) as stage:
        subject = _subject(silo, scenario, text=text, canaries=canaries)
        if delta >= 1 / subject.nominal_users:
            raise ConfigError(
                f"delta is {delta:g}; it must be below 1/users = {1 / subject.nominal_users:g}."
            )
        report = run_audit(subject, settings, effort, seed=seed, stage=stage)
    name = "40 made-up customers" if silo is None else f"Silo folder {silo.name}"
    write_page(report, out, subject=name)
    _show(report, name, out, as_json=as_json)
    if report.refuted:
        raise typer.Exit(1)


def _subject(silo: Path | None, scenario: str, *, text: bool, canaries: int) -> "Subject":
    from dataclasses import replace

    from client.audit_run import subject_of
    from silotune.tables.silo_folder import SiloFolder, list_silos
    from silotune.tables.synthetic import SyntheticConfig, generate
    from simulations.scenario import load_scenario

    known = load_scenario(scenario)
    cfg = replace(known.model, use_text=text)
    if silo is not None:
        return subject_of(SiloFolder.open(silo), known.task, cfg, canaries=canaries)
    with tempfile.TemporaryDirectory(prefix="silotune-audit-") as folder:
        made = Path(folder) / "silos"
        # The time span of scenario 'synthetic'. Always the same people.
        config = SyntheticConfig(merchants=1, users_per_merchant=40, weeks=40, seed=0)
        generate(config, made, seeded_keys=True)
        return subject_of(list_silos(made)[0], known.task, cfg, canaries=canaries)


@contextmanager
def _stages(*, quiet: bool) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:

        def stage(name: str) -> Callable[[int, int], None]:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield stage


def _show(report: "AuditReport", name: str, out: Path, *, as_json: bool) -> None:
    from simulations.audit_table import CAVEATS, rows_of

    rows = rows_of(report)
    if as_json:
        found = {
            "claim": report.claim,
            "step_claim": report.step_claim,
            "delta": report.settings.delta,
            "confidence": report.settings.confidence,
            "refuted": list(report.refuted),
            "rows": [
                {"what": r.what.strip(), "found": r.found, "limit": r.limit, "verdict": r.verdict}
                for r in rows
            ],
            "page": str(out),
        }
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    head = (
        f"{name}: claimed ε = {report.claim:.2f} per release\n"
        f"δ = {report.settings.delta:g}; each lower bound holds with "
        f"{report.settings.confidence:.0%} confidence"
    )
    shown = Table("what", title=Text(head), title_justify="left")
    for column in ("found", "claim or limit", "found is"):
        shown.add_column(column, justify="right")
    for row in rows:
        style = "bold red" if row.verdict == "above" else "green"
        shown.add_row(Text(row.what), row.found, row.limit, Text(row.verdict, style=style))
    console.print(shown)
    if report.refuted:
        console.print(f"The claim is refuted by: {', '.join(report.refuted)}.", style="bold red")
    for caveat in CAVEATS:
        console.print(caveat, highlight=False)
    if report.repeatable:
        console.print("Seeded noise: what was trained here is not private.", style="yellow")
    console.print(f"Plots: {out}", highlight=False, soft_wrap=True)
