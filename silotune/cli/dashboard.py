"""Where a side's dashboard is: for the commands of both."""

import os
from pathlib import Path

import typer

__all__ = ["dashboard_line", "show_dashboard"]


def dashboard_line(side: str, folder: Path) -> str:
    """Return where the dashboard of a running ``folder`` is.

    Without the token: what `start` and `status` print ends in journals.
    """
    from silotune.observe import read_url

    return f"dashboard at {read_url(folder)}/: `silotune {side} dashboard {folder}` opens it"


def show_dashboard(side: str, folder: Path, *, launch: bool) -> None:
    """Print the address with the token; with ``launch``, open a browser.

    Raises:
        ConfigError: the folder does not run.
    """
    from silotune.errors import ConfigError
    from silotune.observe import read_token, read_url
    from silotune.supervision import read_state

    state, url = read_state(folder), read_url(folder)
    if state is None or url is None:
        raise ConfigError(f"{folder}: is not running; start it with `silotune {side} start`.")
    whole = f"{url}/?token={read_token(folder)}"
    typer.echo(whole)
    if launch:
        # By a file: arguments of a program, the browser's too, are seen by every account.
        page = folder / "run" / "dashboard.html"
        page.unlink(missing_ok=True)
        handle = os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f'<meta http-equiv="refresh" content="0; url={whole}">\n')
        typer.launch(page.resolve().as_uri())
