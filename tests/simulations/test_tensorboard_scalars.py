import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simulations.aggregate import summarise
from simulations.report import write_tensorboard


def test_tensorboard_has_every_curve_of_every_seed(whole_run):
    folder = write_tensorboard(whole_run)
    # Once more: no figure is there twice.
    write_tensorboard(whole_run)
    curve = EventAccumulator(str(folder / "federated-eps8" / "seed-1")).Reload()
    wanted = [
        r["auc"]
        for r in whole_run.records()
        if r["kind"] == "round" and (r["arm"], r["seed"]) == ("federated-eps8", 1)
    ]
    found = curve.Scalars("round/auc")
    assert [s.step for s in found] == list(range(1, len(wanted) + 1))
    assert [s.value for s in found] == pytest.approx(wanted)
    overall = EventAccumulator(str(folder / "federated-eps8")).Reload()
    spent = [s.value for s in overall.Scalars("privacy/epsilon")]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(7.984, abs=1e-3)
    mean = summarise(whole_run.records()).figure("federated-eps8").mean
    assert overall.Scalars("test/auc")[0].value == pytest.approx(mean)


def test_tensorboard_stays_in_the_run_folder_and_needs_no_torch(made_up_run):
    run = made_up_run(seeds=1, merchants=1, arms=("../../evil", "federated"))
    code = (
        "import sys\nfrom pathlib import Path\nfrom simulations.report import write_tensorboard\n"
        "from simulations.run_folder import RunFolder\n"
        "write_tensorboard(RunFolder.open(Path(sys.argv[1])))\n"
        "sys.exit('torch' in sys.modules or 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, run.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (run.path / "tensorboard").iterdir()}
    assert names == {"______evil", "federated"}
    assert [p.name for p in run.path.parent.iterdir()] == [run.path.name]
