import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("silotune", "privacy", "client", "server")


def test_flowers_bundle_holds_every_module_that_the_apps_import(tmp_path):
    # Flower leaves out files whose names look like tests, whatever the project includes.
    app = tmp_path / "app"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, app / name)
    done = subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", app],
        cwd=tmp_path,
        env={"FLWR_HOME": str(tmp_path / "home"), "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = tmp_path.rglob("*.fab")
    with zipfile.ZipFile(bundle) as file:
        held = {n for n in file.namelist() if n.endswith(".py")}
    wanted = {
        str(p.relative_to(app)) for package in PACKAGES for p in (app / package).rglob("*.py")
    }
    assert held == wanted
