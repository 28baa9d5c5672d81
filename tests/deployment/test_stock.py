"""`flwr run` on this project, with Flower's own SuperLink and SuperNodes and no daemon.

For a trusted setting only: there the nodes run the code that comes with the run.
"""

import datetime as dt
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from privacy.chain import Chain
from privacy.ledger_report import ledger_rows, verify
from silotune.federation import Federation, Job
from silotune.models.text_model import ModelConfig
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.tasks.promotion_response import PromotionResponse
from simulations.benchmarks.stock_deployment import stock_deployment

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def test_flwr_run_on_the_project_trains_with_stock_nodes(tmp_path):
    generate(SyntheticConfig(merchants=2, users_per_merchant=60), tmp_path / "silos")
    silos = sorted((tmp_path / "silos").iterdir())
    private = {"noise_multiplier": 2.0, "clip_norm": 4.0, "sampling_rate": 0.25, "steps": 2}
    Federation(
        task=PromotionResponse(
            first=dt.datetime.fromisoformat("2024-02-05"),
            split=dt.datetime.fromisoformat("2024-05-20"),
            last=dt.datetime.fromisoformat("2024-07-01"),
            category_level=2,
            train_visits=1,
            test_visits=1,
        ),
        models={"text": ModelConfig(use_text=False)},
        jobs=(
            Job(
                name="stock",
                rounds=2,
                epsilon=8.0,
                private=private | {"examples_per_user": 8, "learning_rate": 0.5},
            ),
        ),
        silos=tuple(str(s) for s in silos),
        state=str(tmp_path / "state"),
        delta=1e-3,
    ).save(tmp_path / "federation.json")
    # As a checkout is; Flower walks the whole folder, and a virtual environment takes it long.
    app = tmp_path / "app"
    for package in ("silotune", "privacy", "client", "server"):
        shutil.copytree(ROOT / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, app / name)
    configs = [f"partition-id={n} num-partitions={len(silos)}" for n in range(len(silos))]
    rounds = tmp_path / "state" / "rounds" / "stock"
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with stock_deployment(tmp_path / "stock", configs, environment) as running:
        path = tmp_path / "federation.json"
        running.run(app, "--run-config", f'federation="{path}"')
        until = time.monotonic() + 800
        while not (rounds / "round-0001.safetensors").exists():
            assert time.monotonic() < until, running.logs()
            time.sleep(1)
        # What ran was the bundle, not what is installed: nothing here pins it.
        apps = Path(running.environment["FLWR_HOME"])
        assert list(apps.rglob("client/client_app.py")), running.logs()
    adapters = [load_file(rounds / f"round-000{n}.safetensors")["flat"] for n in range(2)]
    assert all(np.isfinite(a).all() for a in adapters)
    assert not np.array_equal(*adapters)
    ledgers = sorted((tmp_path / "state" / "ledgers" / "stock").glob("*.db"))
    assert len(ledgers) == 2
    for ledger in ledgers:
        assert [r.round for r in ledger_rows(Chain.read(ledger))] == [0, 1]
        assert verify(ledger).released == 2
