"""The rows of the table of ratios: which two sides, on what, and what is reported beside."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from silotune.tables.silo_folder import SiloFolder
from simulations.benchmarks.harness import BenchmarkError, Pairs, Ratio, Sample, paired, run_module
from simulations.benchmarks.setting import Setting, by_size, limited, make_setting, taking_part
from simulations.scenario import load_scenario

__all__ = ["COMPARISONS", "Bench"]

_ROUNDS = 5
_QUICK_MERCHANTS = 2


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every row needs: where, how often, which merchants."""

    out: Path
    scenario: str
    repeats: int
    quick: bool
    learning_rate: float = 5e-3
    """Of AdamW, in the stock recipe and in plain peft training."""
    merchants: int | None = None
    """Of the scenario, evenly spaced from largest to smallest; None: all."""
    plots: Path
    """Folder of the page; plots go into ``images`` in it."""

    @cached_property
    def setting(self) -> Setting:
        """Setting of the whole scenario, made once; the silos are the benchmark's own copies."""
        from simulations.preparation import make_silos

        wanted = load_scenario(self.scenario)
        silos = make_silos(wanted.data, self.out / "data", lambda *_: None)
        if self.quick:
            silos = silos[:_QUICK_MERCHANTS]
        return make_setting(
            wanted,
            spaced(taking_part(silos, wanted), self.merchants),
            self.out / self.scenario,
            rounds=1 if self.quick else _ROUNDS,
            learning_rate=self.learning_rate,
        )

    def run(self, module: str, *arguments: str, timeout: float = 4 * 3600) -> Sample:
        """Run a module of this package as a process."""
        log = self.out / "logs" / f"{module}-{Path(arguments[0]).stem}.log"
        name = f"simulations.benchmarks.{module}"
        return run_module(name, arguments, log=log, timeout=timeout)


def spaced(silos: Sequence[SiloFolder], count: int | None) -> list[SiloFolder]:
    """Return ``count`` of ``silos``, evenly spaced by size; all when it is None or not less."""
    if count is None or count >= len(silos):
        return list(silos)
    ordered = by_size(silos)
    return [ordered[(2 * i + 1) * len(silos) // (2 * count)] for i in range(count)]


def stock(bench: Bench, length: int) -> dict[str, Any]:
    """Whole training, stock recipe over silotune, both from tables; AUC of both."""
    setting = bench.setting
    path = str(Path(setting.folder) / "setting.json")
    out = bench.out / f"stock-{length}"

    def theirs() -> Sample:
        (out / "seen.jsonl").unlink(missing_ok=True)
        return bench.run("stock", "train", path, str(out), str(length))

    pairs = paired(theirs, lambda: _ours(bench, setting), bench.repeats)
    bench.run("stock", "score", path, str(out))
    bench.run("ours", "score", path)
    their = json.loads((out / "score.json").read_text(encoding="utf-8"))
    our = json.loads((Path(setting.folder) / "score.json").read_text(encoding="utf-8"))
    beside = (
        f"AUC {their['auc']:.3f} (stock, protects examples) and {our['auc']:.3f} (silotune, "
        f"protects users); {len(setting.federation.silos)} merchants; examples seen "
        f"{their['seen']:.0f}, expected of silotune {their['expected']:.0f}; "
        f"{_minutes(pairs)}; memory ratio {_memory(pairs):.2f}"
    )
    what = f"stock recipe, texts padded to {length} / silotune, whole training"
    return _row(pairs, what, beside) | {"stock": their, "silotune": our}


def limit(bench: Bench, kind: str) -> dict[str, Any]:
    """Whole training, silotune over training without privacy and federation."""
    setting = bench.setting
    path = str(Path(setting.folder) / "setting.json")

    def plain() -> Sample:
        setting.cold()
        return bench.run("limit", kind, path)

    pairs = paired(lambda: _ours(bench, setting), plain, bench.repeats)
    names = {"peft": "plain peft training", "cache": "plain training from silotune's cache"}
    beside = f"{_minutes(pairs)}; memory ratio {_memory(pairs):.2f}"
    return _row(pairs, f"silotune, whole training / {names[kind]}", beside)


def nvflare(bench: Bench) -> dict[str, Any]:
    """The rounds alone, NVFlare's simulator over silotune's, the same client code."""
    from simulations.benchmarks import flare

    flare.require()
    merchants = 2 if bench.quick else 16
    setting = limited(bench.setting, bench.out / "nvflare", merchants)
    path = str(Path(setting.folder) / "setting.json")
    bench.run("ours", "prepare", path)

    def fresh(module: str, *arguments: str) -> Sample:
        setting.forget()
        return bench.run(module, *arguments, path)

    pairs = paired(lambda: fresh("flare"), lambda: fresh("ours", "rounds"), bench.repeats)
    beside = f"{len(setting.federation.silos)} merchants; {_minutes(pairs)}"
    return _row(pairs, "NVFlare's simulator / silotune, rounds on prepared examples", beside)


def overhead(bench: Bench, engine: str) -> dict[str, Any]:
    """Rounds of a simulation over the training in them, shared among the workers."""
    merchants = 2 if bench.quick else 16
    made = replace(bench.setting, engine=engine)
    setting = limited(made, bench.out / f"overhead-{engine}", merchants)
    path = str(Path(setting.folder) / "setting.json")
    out = Path(setting.folder) / "overhead.json"
    bench.run("ours", "prepare", path)
    found = []
    for _ in range(bench.repeats):
        bench.run("overhead", path, str(out))
        found.append(json.loads(out.read_text(encoding="utf-8")))
    beside = (
        f"{found[0]['merchants']:.0f} merchants, {setting.workers} workers, from round 2 on "
        f"{statistics.median(f['ratio_later'] for f in found):.2f}; training "
        f"{min(f['training'] for f in found):.0f} s, with all that starts "
        f"{min(f['whole'] for f in found):.0f} s"
    )
    values = [f["ratio"] for f in found]
    low, middle, high = statistics.quantiles(values * 2, n=4) if len(values) > 1 else values * 3
    nan = float("nan")
    ratio = Ratio(middle, low, high, nan, nan, len(values))
    what = "wall time of the rounds / training time, shared among the workers"
    return {"what": what, "beside": beside, "ratio": ratio, "runs": found}


def dplora(bench: Bench, method: Any) -> dict[str, Any]:
    """One step, dp-lora over silotune."""
    from simulations.benchmarks.dplora_step import compare

    size = {"examples": 4, "tokens": 16} if bench.quick else {}
    pairs = compare(method, 3 if bench.quick else max(24, bench.repeats), **size)
    trained = {"ffa": "B trained", "vanilla": "A and B trained"}[method]
    result = _row(pairs, f"dp-lora / silotune, one step, {trained}", "processor time, one thread")
    return result | {"ratio": pairs.ratio("cpu")}


def _ours(bench: Bench, setting: Setting) -> Sample:
    setting.cold()
    return bench.run("ours", "train", str(Path(setting.folder) / "setting.json"))


def _row(pairs: Pairs, what: str, beside: str) -> dict[str, Any]:
    return {
        "what": what,
        "beside": beside,
        "ratio": pairs.ratio("wall"),
        "ratio_cpu": pairs.ratio("cpu"),
        "pairs": pairs,
    }


def _minutes(pairs: Pairs) -> str:
    first, second = (min(s.wall for s in side) for side in (pairs.first, pairs.second))
    return f"fastest run {first:.0f} s and {second:.0f} s"


def _memory(pairs: Pairs) -> float:
    try:
        return pairs.ratio("peak").median
    except ZeroDivisionError as error:
        raise BenchmarkError("a run was too short for its memory to be read.") from error


COMPARISONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "stock-128": lambda bench: stock(bench, 128),
    "stock-64": lambda bench: stock(bench, 64),
    "plain-peft": lambda bench: limit(bench, "peft"),
    "plain-cache": lambda bench: limit(bench, "cache"),
    "dp-lora-ffa": lambda bench: dplora(bench, "ffa"),
    "dp-lora-vanilla": lambda bench: dplora(bench, "vanilla"),
    "nvflare": nvflare,
    "overhead": lambda bench: overhead(bench, "pool"),
    "overhead-ray": lambda bench: overhead(bench, "flower"),
}
"""By name of the row."""
