"""Plots of an audit, and the page that holds them."""

import math
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from client.attacks import Membership
from client.audit_run import AuditReport
from privacy.audit_curves import roc, tpr_limit
from simulations.audit_table import CAVEATS, rows_of
from simulations.plot_style import ACCENT, FAULT, GRID, INK, MUTED, draw, name_rows, plain_ticks

__all__ = ["bounds_plot", "inversion_plot", "roc_plot", "scores_plot", "write_page"]

_HEIGHT = 3.3
_MOST = 12.0
"""ε beyond which bars are cut."""


def bounds_plot(report: AuditReport) -> Markup:
    """Draw each lower bound on ε beside its claim."""
    rows = (
        ("one step: single steps", report.trials.epsilon, report.step_claim),
        ("release: one run, all steps", report.one_run.epsilon, report.claim),
        ("release: one run, sum only", report.one_run_release.epsilon, report.claim),
        ("release: Gaussian canaries", report.estimate.epsilon, report.claim),
    )
    most = min(_MOST, 1.15 * max(v for _, *pair in rows for v in pair if math.isfinite(v)))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (_, found, claim) in enumerate(rows):
            shown = min(found, most)
            colour = MUTED if place == 3 else FAULT if found > claim else ACCENT
            axes.barh(place, shown, height=0.5, color=colour)
            axes.plot([claim, claim], [place - 0.38, place + 0.38], color=INK)
        low = min(report.estimate.low, most)
        axes.plot([low, min(report.estimate.high, most)], [3, 3], color=INK, linewidth=1)
        name_rows(axes, [name for name, *_ in rows])
        axes.set_xlim(0, most)
        axes.set_xlabel(f"ε at δ = {report.settings.delta:g}; the black line is the claim")

    return draw("audit-bounds", "Lower bounds on ε beside the claims", _HEIGHT, paint)


def scores_plot(report: AuditReport) -> Markup:
    """Draw the canaries' scores in the release, for those inside and those outside."""
    seen = report.canary_scores

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        low, high = np.quantile(seen.score, [0.001, 0.999]).tolist()
        edges = np.linspace(low, high, 40)
        for inside, colour, name in (
            (False, MUTED, "not in the data"),
            (True, ACCENT, "in the data"),
        ):
            axes.hist(
                seen.score[seen.included == inside],
                bins=edges.tolist(),
                histtype="step",
                color=colour,
                linewidth=1.8,
                label=name,
            )
        axes.set_xlabel("canary's part of the release, in clip norms")
        axes.set_ylabel("canaries")
        axes.legend(frameon=False)

    return draw("audit-scores", "Scores of canary users", _HEIGHT, paint)


def roc_plot(report: AuditReport) -> Markup:
    """Draw the membership attack with and without noise below what the claim allows."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        fpr = np.geomspace(1e-3, 1, 400)
        allowed = tpr_limit(fpr, report.claim, report.settings.delta)
        axes.fill_between(fpr, allowed, 1.0, color=GRID, linewidth=0)
        axes.plot(fpr, allowed, color=INK, linewidth=1.2, label=f"limit at ε = {report.claim:.2f}")
        _curve(axes, report.membership_noiseless, FAULT, "without noise")
        _curve(axes, report.membership, ACCENT, "as claimed")
        axes.plot(fpr, fpr, color=MUTED, linewidth=1, dashes=(1, 2))
        axes.set_xscale("log")
        axes.set_xlim(5e-3, 1)
        plain_ticks(axes.xaxis)
        axes.set_ylim(0, 1)
        axes.set_xlabel("false-positive rate")
        axes.set_ylabel("true-positive rate")
        axes.legend(frameon=False, loc="upper left")

    return draw("audit-roc", "Membership inference", _HEIGHT, paint)


def _curve(axes: Axes, attack: Membership, colour: str, name: str) -> None:
    curve = roc(attack.score, attack.member)
    label = f"{name}: AUC {curve.auc:.2f}"
    axes.plot(curve.fpr, curve.tpr, color=colour, drawstyle="steps-post", label=label)


def inversion_plot(report: AuditReport) -> Markup:
    """Draw how close each inverted update comes to the user's true input."""
    pairs = (("without noise", report.inversion_noiseless), ("as claimed", report.inversion))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (_, found) in enumerate(pairs):
            spread = np.linspace(-0.22, 0.22, len(found.similarity))
            colour = FAULT if place == 0 else ACCENT
            axes.plot(found.similarity, place + spread, ".", color=colour)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_xlim(-1.05, 1.05)
        name_rows(axes, [name for name, _ in pairs])
        axes.set_xlabel("cosine of recovered and true input, one dot per user")

    return draw("audit-inversion", "Gradient inversion", _HEIGHT * 0.7, paint)


_STYLE = Markup("""
:root { color-scheme: light dark; --page: #f5f7f8; --surface: #fefefe; --ink: #1d2730;
  --muted: #5b6770; --grid: #dfe4e8; --blue: #0072b2; --green: #00855f; --vermillion: #c8500a;
  --purple: #a8528a; --orange: #8f6600; --brown: #7d4e2d; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #12171b; --surface: #1a2126;
  --ink: #e6ebee; --muted: #9aa7b0; --grid: #313b43; --blue: #5ab4ec; --green: #3cc79b;
  --vermillion: #ff8f57; --purple: #dc96c2; --orange: #e2b13c; --brown: #cfa07c; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 26px; margin: 0 0 8px; } h2 { font-size: 15px; margin: 0 0 8px; }
p { max-width: 78ch; color: var(--muted); } .bad { color: var(--vermillion); font-weight: 600; }
section, table { background: var(--surface); border: 1px solid var(--grid); border-radius: 8px; }
section { padding: 16px 18px; } .scroll { overflow-x: auto; margin: 18px 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr));
  gap: 18px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--grid); }
td:first-child, th:first-child { text-align: left; white-space: pre; }
svg { display: block; width: 100%; height: auto; }
""")

_PAGE = Markup("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Privacy audit · silotune</title><style>{style}</style></head><body><main>
<h1>Privacy audit: {verdict}</h1>
<p>{claim}</p>
<div class="scroll"><table><thead><tr><th>what</th><th>found</th><th>claim or limit</th>
<th></th></tr></thead><tbody>{rows}</tbody></table></div>
<div class="grid">{plots}</div>
{caveats}
</main></body></html>
""")


def write_page(report: AuditReport, path: Path, *, subject: str) -> None:
    """Write one HTML file with the table and the plots; ``subject`` says what was audited."""
    row = Markup('<tr><td>{}</td><td>{}</td><td>{}</td><td class="{}">{}</td></tr>')
    rows = Markup("\n").join(
        row.format(r.what, r.found, r.limit, "bad" if r.verdict == "above" else "", r.verdict)
        for r in rows_of(report)
    )
    plots = {
        "Lower bounds on ε beside the claims": bounds_plot(report),
        "Canary users in the release": scores_plot(report),
        "Membership inference": roc_plot(report),
        "Gradient inversion of a silo with one user": inversion_plot(report),
    }
    section = Markup("<section><h2>{}</h2>{}</section>")
    known = report.settings.privacy
    claim = (
        f"{subject}. Claim: ε = {report.claim:.2f} at δ = {report.settings.delta:g} for one "
        f"release of {report.settings.steps} steps; σ = {known.noise_multiplier:g}, "
        f"q = {known.sampling_rate:g}, clip {known.clip_norm:g}. Unit: one user of one merchant; "
        "neighbours: add or remove one user."
    )
    noise = ("The noise was seeded, to repeat the audit.",) if report.repeatable else ()
    page = _PAGE.format(
        style=_STYLE,
        verdict="the claim is refuted" if report.refuted else "the claim was not refuted",
        claim=claim,
        rows=rows,
        plots=Markup("\n").join(section.format(name, plot) for name, plot in plots.items()),
        caveats=Markup("\n").join(Markup("<p>{}</p>").format(c) for c in (*CAVEATS, *noise)),
    )
    path.write_text(page, encoding="utf-8")
