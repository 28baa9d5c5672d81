import copy
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from simulations.benchmarks import __main__ as command
from simulations.benchmarks.comparisons import COMPARISONS, Bench, spaced
from simulations.benchmarks.curves import CURVES
from simulations.benchmarks.harness import NotInstalledError, Pairs, Sample
from simulations.benchmarks.scaling import Curve

PAIRS = Pairs((Sample(6.0, 5.0, 300.0),) * 2, (Sample(2.0, 2.0, 200.0),) * 2)
RATIO = {"what": "a / b", "beside": "AUC", "ratio": PAIRS.ratio("wall"), "pairs": PAIRS}
CURVE = Curve("merchants", "merchants", (1.0, 10.0), {"job": (1.0, 9.0)}, (100.0, 110.0))


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "performance.md"
    tables = [f"<!-- table {n}: begin -->\n<!-- table {n}: end -->" for n in ("ratios", "curves")]
    path.write_text("# Before\n" + "\nBetween\n".join(tables) + "\nAfter\n", encoding="utf-8")
    return path


def _run(monkeypatch, page, tmp_path, rows, **options):
    monkeypatch.setattr(command, "COMPARISONS", rows)
    monkeypatch.setattr(command, "CURVES", {})
    known = {"only": "", "quick": False, "out": tmp_path / "out", "repeats": 2, "scenario": "demo"}
    known |= {"stock_rate": 5e-3, "merchants": None}
    with pytest.raises(command.typer.Exit) as end:
        command.main(**{**known, "page": page, **options})
    return end.value.exit_code


def test_a_sample_of_merchants_is_spaced_from_the_largest_to_the_smallest(tmp_path):
    silos = []
    for number, size in enumerate((40, 10, 30, 60, 20, 50)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "events.parquet").write_bytes(bytes(size))
        silos.append(SimpleNamespace(path=folder, size=size))
    assert [s.size for s in spaced(silos, 3)] == [50, 30, 10]
    assert spaced(silos, 6) == spaced(silos, None) == silos


def test_a_missing_rival_is_left_out_and_the_others_go_to_the_page(monkeypatch, page, tmp_path):
    def missing(bench):
        raise NotInstalledError("nvflare is not installed: pip install nvflare.")

    rows = {"nvflare": missing, "stock-64": lambda bench: RATIO}
    assert _run(monkeypatch, page, tmp_path, rows) == 0
    text = page.read_text(encoding="utf-8")
    assert "| stock-64 | a / b | **3.00** | 3.00 to 3.00 | 3.00 / 3.00 | 2 | AUC |" in text
    assert "nvflare" not in text
    assert (tmp_path / "out" / "stock-64.json").exists()
    # Asked for by name, it is an error.
    assert _run(monkeypatch, page, tmp_path, rows, only="nvflare") == 1


def test_a_quick_run_leaves_the_page_alone(monkeypatch, page, tmp_path):
    before = page.read_bytes()
    assert _run(monkeypatch, page, tmp_path, {"x": lambda bench: RATIO}, quick=True) == 0
    assert page.read_bytes() == before


def test_a_curve_goes_to_its_own_table(page):
    command.write_rows(page, "merchants", {"curve": CURVE, "exponents": CURVE.exponents()})
    text = page.read_text(encoding="utf-8")
    assert (
        "| merchants | 1 to 10 merchants | job 0.95 | 100 to 110 MiB |" in text.split("Between")[1]
    )


def test_the_page_of_the_project_has_both_tables_and_names_every_row():
    text = command._PAGE.read_text(encoding="utf-8")
    for name in ("ratios", "curves"):
        assert text.count(f"<!-- table {name}: begin -->") == 1
    for name in (*COMPARISONS, *CURVES):
        assert f"`{name}`" in text


@pytest.mark.parametrize("row", ["nvflare", "dp-lora-ffa", "dp-lora-vanilla"])
def test_a_rival_that_is_not_there_is_said_by_name(monkeypatch, tmp_path, row):
    # Checked before anything is prepared.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    bench = Bench(out=tmp_path, scenario="demo", repeats=1, quick=True, plots=tmp_path)
    with pytest.raises(NotInstalledError, match="pip install"):
        COMPARISONS[row](bench)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ffa", "vanilla"])
def test_dp_lora_without_noise_makes_the_step_that_silotune_makes(method):
    pytest.importorskip("dp_lora")
    from simulations.benchmarks.dplora_step import make_batch, make_model, ours_step, rival_step

    model, batch = make_model(method), make_batch(4, 8)
    ours, theirs, start_D = copy.deepcopy(model), copy.deepcopy(model), model.adapter()
    ours_step(ours, batch, noise=1e-9)()
    rival_step(theirs, batch, method, noise=0.0)()
    ours_D, theirs_D = (m.adapter() - start_D for m in (ours, theirs))
    assert float((ours_D - theirs_D).norm() / ours_D.norm()) < 1e-3
    assert float(torch.linalg.vector_norm(ours_D)) > 0


def test_both_sides_of_a_row_start_cold(monkeypatch, tmp_path):
    from simulations.benchmarks import comparisons

    done = []
    setting = SimpleNamespace(folder=str(tmp_path), cold=lambda: done.append("cold"))
    bench = SimpleNamespace(
        setting=setting,
        repeats=2,
        run=lambda module, *a, **k: done.append(f"{module} {a[0]}") or Sample(1.0, 1.0, 1.0),
    )
    comparisons.limit(bench, "cache")
    ours, theirs = ["cold", "ours train"], ["cold", "limit cache"]
    assert done == [*ours, *theirs, *theirs, *ours]
