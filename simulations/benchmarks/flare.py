"""Run a setting's rounds in NVFlare's simulator, with silotune's own client code in it.

NVFlare 2.9 as documented: `NumpyFedAvgRecipe` with `SimEnv`, client script in the client's process,
as many simulator threads as workers. The examples are prepared before, as for the other side
(`simulations.benchmarks.ours rounds`), so that the ratio is that of the two engines.
"""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import typer

from simulations.benchmarks import flare_client
from simulations.benchmarks.harness import NotInstalledError
from simulations.benchmarks.setting import Setting, read_setting

__all__ = ["require", "train"]


def require() -> None:
    """Raise NotInstalledError unless NVFlare is installed."""
    if importlib.util.find_spec("nvflare") is None:
        raise NotInstalledError("nvflare is not installed: pip install nvflare.")


def train(setting: Setting) -> None:
    """Run all rounds in NVFlare's simulator."""
    require()
    from silotune.federation import build_model

    federation, job = setting.federation, setting.job
    nodes = len(federation.silos)
    start_D = build_model(federation.models, job.model, federation.task).adapter().numpy()
    # Optional: imported by name, so that no tool misses it.
    recipes = importlib.import_module("nvflare.app_common.np.recipes")
    recipe = recipes.NumpyFedAvgRecipe(
        name="silotune",
        model=start_D.astype(np.float32).tolist(),
        min_clients=nodes,
        num_rounds=job.rounds,
        train_script=str(Path(flare_client.__file__).resolve()),
        train_args=f"--federation {setting.federation_path}",
    )
    environment = importlib.import_module("nvflare.recipe").SimEnv(
        num_clients=nodes,
        num_threads=min(nodes, setting.workers),
        workspace_root=str(Path(setting.folder) / "nvflare"),
    )
    recipe.execute(environment)


def main(setting: Path) -> None:
    """Run SETTING's rounds."""
    train(read_setting(setting))


if __name__ == "__main__":
    typer.run(main)
