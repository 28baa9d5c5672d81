import re
from html.parser import HTMLParser

import numpy as np
import pytest

from simulations.run_folder import RunFolder

# AUC of each arm, mean over merchants: the size of what first runs on Complete Journey gave.
ARMS = {
    "popularity": 0.745,
    "logistic-local": 0.777,
    "logistic-pooled": 0.801,
    "local-only": 0.793,
    "pooled": 0.833,
    "federated": 0.822,
    "federated-eps8": 0.808,
    "federated-eps2": 0.798,
    "numeric-federated": 0.803,
    "numeric-eps8": 0.796,
    "numeric-eps2": 0.790,
    "federated+local": 0.826,
    "federated-eps8+local": 0.811,
    "federated-eps2+local": 0.801,
}
ROUNDS, DELTA = 8, 1e-4


def write_made_up_run(path, *, merchants=16, seeds=3, arms=tuple(ARMS), private=True):
    """Write records as a real run would, the same ones every time; still running."""
    rng = np.random.default_rng(7)
    names = [f"store-{n}" for n in rng.choice(np.arange(100, 999), merchants, replace=False)]
    run = RunFolder.create(
        path,
        {
            "name": "complete-journey-16",
            "data": {"source": "complete-journey", "merchants": merchants + 2},
            "privacy": {"epsilons": [8.0, 2.0], "delta": DELTA, "rounds": ROUNDS},
            "seeds": seeds,
        },
        private=private,
        privacy_note="noise and sampling come from the operating system's cryptographic source",
    )
    users = rng.integers(60, 240, merchants)
    run.describe(
        merchants=[
            {
                "name": name,
                "nominal_users": round(int(count), -1),
                "train_examples": int(count) * 14,
                "test_examples": int(count) * 4,
                "test_positives": int(count * rng.uniform(0.4, 0.9)),
            }
            for name, count in zip(names, users, strict=True)
        ],
        excluded=[{"name": "store-31", "reason": "38 users before the split, fewer than 50"}],
        timings={"data": 48.2, "examples and frozen layers": 131.0, "simple methods": 6.1}
        | {"each merchant alone": 412.0, "federated rounds": 1580.4, "all pooled": 231.0},
    )
    level = rng.normal(0, 0.025, merchants)
    for seed in range(seeds):
        shift, of_seed = rng.normal(0, 0.008, merchants), rng.normal(0, 0.002)
        for arm in arms:
            auc = ARMS.get(arm, 0.8) + level + shift + of_seed + rng.normal(0, 0.009, merchants)
            _score(run, seed, arm, names, auc, rng)
            if arm in ARMS and ("federated" in arm or "eps" in arm) and "+" not in arm:
                _rounds(run, seed, arm, names, float(auc.mean()), rng)
                if "eps" in arm:
                    _private_metrics(run, seed, arm, rng)
    return run


def _score(run, seed, arm, names, auc, rng):
    for name, value in zip(names, auc, strict=True):
        figures = {
            "auc": float(value),
            "log_loss": float(0.62 - 0.3 * value + rng.normal(0, 0.004)),
            "calibration_error": float(abs(rng.normal(0.02, 0.006))),
            "ndcg": float(value - 0.17 + rng.normal(0, 0.01)),
            "recall": float(value - 0.1 + rng.normal(0, 0.01)),
        }
        run.append({"kind": "score", "seed": seed, "arm": arm, "merchant": name, **figures})
    mean = np.sort(rng.beta(1.2, 5, 10))
    rate = np.clip(mean * rng.normal(1, 0.06, 10) + 0.01, 0, 1)
    bins = [[float(m), float(r), 700] for m, r in zip(mean, rate, strict=True)]
    run.append({"kind": "calibration", "seed": seed, "arm": arm, "bins": bins})


def _private_metrics(run, seed, arm, rng):
    error = 0.05 if "eps2" in arm else 0.013
    for name, truth in (
        ("auc", 0.75),
        ("accuracy", 0.9),
        ("log_loss", 0.31),
        ("positive_rate", 0.08),
    ):
        value = float(truth + rng.normal(0, error))
        run.append(
            {"kind": "private-metrics", "seed": seed, "arm": arm, "round": ROUNDS - 1}
            | {"metric": name, "value": value, "standard_error": error, "low": value - 0.09}
            | {"high": value + 0.09, "noiseless": truth, "exact": truth + 0.004}
        )


def _rounds(run, seed, arm, names, last, rng):
    merchants = len(names)
    epsilon = float(arm.split("eps")[1]) if "eps" in arm else None
    size = 20_000 if arm.startswith("numeric") else 1_180_000
    for round_ in range(ROUNDS):
        auc = last - 0.09 * np.exp(-0.8 * round_) + rng.normal(0, 0.0015)
        lost = int(rng.random() < 0.05)
        run.append(
            {"kind": "round", "seed": seed, "arm": arm, "round": round_, "auc": float(auc)}
            | {"log_loss": float(0.62 - 0.3 * auc), "seconds": float(rng.normal(22, 1.5))}
            | {"bytes_up": size * (merchants - lost), "bytes_down": size * merchants}
            | {"replies": merchants - lost, "failures": lost}
        )
        for index, name in enumerate(names if epsilon else []):
            # A merchant may allow fewer rounds than the others.
            done = min(round_ + 1, ROUNDS - (index % 5 == 0))
            spent = epsilon * np.sqrt(done / ROUNDS) * (1 - 0.002 * index)
            run.append(
                {"kind": "privacy", "seed": seed, "arm": arm, "merchant": name, "round": round_}
                | {"epsilon": float(spent), "delta": DELTA}
            )


@pytest.fixture
def made_up_run(tmp_path):
    """Return a function that writes a run like those of Complete Journey, only invented."""

    def make(name="run", **options):
        return write_made_up_run(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A finished run of 16 merchants, 3 seeds and 14 arms. Not to be written to."""
    run = write_made_up_run(tmp_path_factory.mktemp("whole") / "run")
    run.finish("finished")
    return run


_VOID = ("meta", "br", "img", "link", "input", "hr")


class _Page(HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.open, self.figures = [], [], [], [], []
        self.text, self.rows = "", []
        self.html = text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [given[k] for k in ("href", "src", "xlink:href", "srcset") if k in given]
        self.links += re.findall(r"url\(([^)]*)\)", " ".join(v or "" for v in given.values()))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] in (["style"], ["title"]):
            return
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.replace("\u00a0", " ")
        if self.open[-1:] == ["h3"]:
            self.figures.append(data)

    def row(self, name):
        return next(row for row in self.rows if row and row[0] == name)


@pytest.fixture(scope="session")
def page_of():
    """Return a function that writes the report of a run and reads its page."""
    # Draws plots: the library is loaded for the tests of reports alone.
    from simulations.report import write_report

    return lambda run: _Page(write_report(run).read_text(encoding="utf-8"))
