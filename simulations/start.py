"""What `silotune simulate` does: scenario in, run folder and report out."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from silotune.config import from_mapping
from silotune.errors import ConfigError, SilotuneError
from simulations.compare import Comparison
from simulations.progress import Stages
from simulations.report import write_report, write_tensorboard
from simulations.run_folder import RunFolder
from simulations.scenario import Scenario, load_scenario
from simulations.summary import print_summary

__all__ = ["simulate"]


def simulate(
    scenario: str,
    *,
    out: Path | None,
    data: Path,
    seeds: int | None,
    engine: str | None,
    console: Console,
    progress: Console | None,
) -> RunFolder:
    """Run a scenario by name or file, print its table and write its report.

    A run folder that was stopped goes on where it was; one that is finished is never
    written over: the default name then gets a number, a named folder is refused.

    Raises:
        SilotuneError: bad scenario, bad data, or a folder that holds another scenario.
    """
    wanted = load_scenario(scenario)
    changes = {"seeds": seeds, "engine": engine}
    overrides = {key: value for key, value in changes.items() if value is not None}
    if overrides:
        wanted = from_mapping(Scenario, {**asdict(wanted), **overrides}, where="options")
    run = _open_run(wanted, out)
    console.print(f"[bold]{wanted.name}[/bold]: {wanted.description}")
    try:
        Comparison(wanted, run, data, Stages(progress)).run()
    except KeyboardInterrupt:
        run.finish("interrupted")
        console.print(f"Interrupted. The state is kept: the same command goes on in {run.path}.")
        raise
    except (SilotuneError, OSError):
        run.finish("failed")
        raise
    run.finish("finished")
    report = write_report(run)
    write_tensorboard(run)
    print_summary(run, console)
    console.print(f"Report: {report}")
    return run


def _open_run(wanted: Scenario, out: Path | None) -> RunFolder:
    resolved = asdict(wanted)
    path = out or Path("runs") / wanted.name
    number = 1
    while (path / "run.json").exists():
        run = RunFolder.open(path)
        same = _plain(run.info.scenario) == _plain(resolved)
        if same and run.info.status != "finished":
            return run
        if out is not None:
            what = "is finished" if same else "holds another scenario"
            raise ConfigError(f"{path}: {what}; give --out another folder.")
        number += 1
        path = Path("runs") / f"{wanted.name}-{number}"
    return RunFolder.create(path, resolved)


def _plain(value: object) -> object:
    import json

    return json.loads(json.dumps(value, default=str))
