"""The view of a run of ``certify``, and of a single certificate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stochprune.report.html import charts
from stochprune.report.html.accounts import CONTROL, Account, differences, from_certificate, from_row
from stochprune.report.html.curves import history_figure
from stochprune.report.html.masks import mask_figures, snapshot_of
from stochprune.report.html.parts import Figure, Panel, Table, View, flattened, short, table_of
from stochprune.report.html.sources import Source


def certify_view(source: Source) -> View:
    """Return the view of a run of ``certify``; certificates and posteriors in its folder add to it."""
    configuration, rows = source.content["configuration"], source.content["rows"]
    files = {path.stem: content for path, content in source.parts("*-*.json") if "losses" in content}
    notes, accounts = [], []
    for row in rows:
        name = f"{row['family']}-{row['objective']}"
        accounts.append(from_certificate(files[name]) if name in files else from_row(row, configuration))
    if len(files) < len(rows):
        notes.append(
            "Certificates are missing beside the results, so differences have no intervals, and the waterfall counts "
            "the examples that the prior took as part of delta. Name the run's folder to have both."
        )
    snapshots = {
        account.name: found
        for account in accounts
        if account.objective != CONTROL
        and account.family == "masks"
        and (found := snapshot_of(source.tensors(f"{account.family}-{account.objective}.pt")))["keep"]
    }
    histories = {f"{row['family']}, {row['objective']}": row["history"] for row in rows if row["history"]}
    figures = [
        *_differences(accounts),
        *_waterfalls(accounts, notes),
        *_divergences(accounts),
        *history_figure("Learning", "The terms of the bound that is minimised, after each epoch.", histories),
        *mask_figures(snapshots),
    ]
    listed = [{key: value for key, value in row.items() if key not in ("kl", "history")} for row in rows]
    facts = flattened({"configuration": configuration, "versions": source.content.get("versions", {})})
    return View(source.name, "certify", facts, figures, [table_of("Certificates", listed)], notes)


def certificate_view(source: Source) -> View:
    """Return the view of one certificate's file."""
    account, notes = from_certificate(source.content), list[str]()
    kept = {key: value for key, value in source.content.items() if key not in ("losses", "kl", "digest")}
    return View(
        source.name,
        "certificate",
        flattened(kept),
        [*_waterfalls([account], notes), *_divergences([account])],
        [],
        notes,
    )


def _differences(accounts: Sequence[Account]) -> list[Figure]:
    records = differences(accounts)
    if not records:
        return []
    columns = ("posterior", "what", "difference, points", "95 % low", "95 % high")
    rows = [list(record.values()) for record in records]
    return [
        Figure(
            "Learnt posteriors against the prior",
            "The difference to the control, the prior itself, in percentage points; left of zero the learnt posterior "
            "is better. Lines: the 95 % interval of the difference of mean losses over the same draws, which also "
            "moves the certificate. The test error has none, since the run does not store it by network.",
            [Panel(charts.intervals(records, "percentage points against the prior"))],
            table=Table("Differences to the prior", columns, rows),
        )
    ]


def _waterfalls(accounts: Sequence[Account], notes: list[str]) -> list[Figure]:
    panels, rows = [], list[list[Any]]()
    for account in accounts:
        if not account.follows():
            notes.append(f"{short(account.name)}: the stated bound does not follow from its other numbers.")
            continue
        panels.append(Panel(_waterfall(account), short(account.name)))
        steps = [*account.steps(), ("certificate", account.bound)]
        rows += [[short(account.name), name, 100 * cost] for name, cost in steps]
    if not panels:
        return []
    table = Table("Accounts of the certificates", ("posterior", "part", "per cent"), rows)
    return [
        Figure(
            "What the certificate costs",
            "From the mean loss of the sampled networks to the certificate; each bar is what one part of the bound "
            "adds, in the order of the proof. Draws: the number of networks is finite. Delta: so is the number of "
            "examples. Prior's examples: those that trained the prior do not certify. Choice of prior: one of several. "
            "KL: what was learnt. The axis does not begin at zero.",
            panels,
            table=table,
            wide=True,
        )
    ]


def _waterfall(account: Account) -> dict[str, Any]:
    records, low = list[dict[str, Any]](), 0.0
    for name, cost in account.steps():
        first = not records
        high = low + 100 * cost
        text = f"{high:.3g} %" if first else f"+{100 * cost:.2g}" if cost >= 1e-5 else "+0"
        records.append({"part": name, "low": high if first else low, "high": high, "text": text, "level": first})
        low = high
    total = 100 * account.bound
    records.append({"part": "certificate", "low": total, "high": total, "text": f"{total:.3g} %", "level": True})
    y = charts.category("part", sort=[record["part"] for record in records])
    ends = {"x": charts.quantity("low", "risk, per cent"), "x2": {"field": "high"}}
    tip = [{"field": "part", "type": "nominal"}, {"field": "text", "type": "nominal", "title": "per cent"}]
    bar = {
        "mark": {"type": "bar", "height": 14},
        "transform": [{"filter": "!datum.level"}],
        "encoding": {"y": y, **ends, "tooltip": tip},
    }
    point = {
        "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 110},
        "transform": [{"filter": "datum.level"}],
        "encoding": {"y": y, "x": ends["x"], "tooltip": tip},
    }
    label = {
        "mark": {"type": "text", "align": "left", "dx": 8},
        "encoding": {"y": y, "x": {"field": "high", "type": "quantitative"}, "text": {"field": "text"}},
    }
    chart = charts.chart(records, [bar, point, label], height=28 * len(records))
    return {**chart, "padding": {"left": 5, "right": 48, "top": 5, "bottom": 5}}


def _divergences(accounts: Sequence[Account]) -> list[Figure]:
    learnt = [account for account in accounts if account.objective != CONTROL and account.kl]
    panels, rows = [], list[list[Any]]()
    for account in learnt:
        records = [{"layer": short(name), "kl": value} for name, value in account.kl.items()]
        x, y = charts.quantity("kl", "KL, nats", zero=True), charts.category("layer")
        panels.append(Panel(charts.bars(records, x, y), short(account.name)))
        rows += [[short(account.name), record["layer"], record["kl"]] for record in records]
    if not panels:
        return []
    about = "The Kullback-Leibler divergence of the posterior from the prior: how far learning moved each layer."
    return [Figure("KL by layer", about, panels, table=Table("KL by layer", ("posterior", "layer", "nats"), rows))]
