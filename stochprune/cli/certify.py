"""``stochprune certify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stochprune.cli.options import Device, configured, options_from
from stochprune.pac_bayes import (
    CertifyConfig,
    PriorConfig,
    RunConfig,
    SelfBoundConfig,
    load_certificate,
    run_certify,
)
from stochprune.pac_bayes import replay as draw_again
from stochprune.pac_bayes import rerun as run_again
from stochprune.pac_bayes.replay import SAMPLE
from stochprune.report import certificate_table, plot_certificates

PANELS = {RunConfig: "Run", PriorConfig: "Prior", SelfBoundConfig: "Posterior", CertifyConfig: "Certificate"}


@options_from(PANELS, without=("objective",))
def certify(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    device: Device = "",
    verify: Annotated[
        Path | None,
        typer.Option(help="Recompute every number of this certificate that follows from others; no network is run."),
    ] = None,
    replay: Annotated[
        int | None,
        typer.Option(help="With --verify: run this draw again, and --sample others, and compare their losses."),
    ] = None,
    sample: Annotated[int, typer.Option(help="With --replay: how many other draws, chosen at random, to repeat.")] = (
        SAMPLE
    ),
    rerun: Annotated[
        bool, typer.Option("--rerun", help="With --verify: train and certify again from the data, and compare.")
    ] = False,
    **values: Any,
) -> None:
    """Certify the risk (the expected test error) of stochastic networks.

    Trains a prior on one part of the data. Starts from it and learns posteriors that minimise a PAC-Bayes bound on the
    rest. Prints a certificate for each posterior and for the prior itself, which hold with probability
    1 - delta - delta_draws. Run the same command again to continue a run that was stopped. Writes a certificate for
    each posterior, results.json and results.png.
    """
    console = Console()
    if replay is not None and verify is None:
        raise ValueError("--replay needs --verify FILE, the certificate whose draw to repeat")
    if rerun and verify is None:
        raise ValueError("--rerun needs --verify FILE, the certificate to make again")
    if verify is not None:
        _verify(console, verify)
        if replay is not None:
            _replay(console, verify, replay, sample, data_dir, device)
        if rerun:
            _rerun(console, verify, data_dir, device)
        return
    folder, results = run_certify(configured(RunConfig, values), data_dir=data_dir, out=out, device=device)
    plot_certificates(results, folder / "results.png")
    console.print(certificate_table(results))
    console.print(f"{folder}/results.json, {folder}/results.png", highlight=False, soft_wrap=True, markup=False)


def _verify(console: Console, path: Path) -> None:
    certificate = load_certificate(path)
    sizes = ", ".join(map(str, certificate.prior_sizes)) or "no"
    made = certificate.configuration is not None
    lines = {
        "certificate": f"{certificate.loss} risk <= {certificate.bound:.6f} with probability "
        f"{1 - certificate.delta - certificate.delta_draws:.4g}",
        "examples": f"{certificate.data} m = {certificate.m}, the prior saw {sizes} others; delta = "
        f"{certificate.delta:g}, divided by {certificate.priors} priors",
        "draws": f"{certificate.draws} ({certificate.monte_carlo}), delta_draws = {certificate.delta_draws:g}, divided "
        f"by {certificate.posteriors} posteriors",
        "risk": f"mean of the draws {certificate.mean_loss:.6f}, bounded {certificate.empirical_risk:.6f}",
        "KL": f"{certificate.total_kl:.6g} nats: "
        + ", ".join(f"{name} {value:.4g}" for name, value in certificate.kl.items()),
        "seeds": f"{certificate.seed}, masks {certificate.mask_seed}",
        "digests": f"examples {certificate.certified[:12]}, prior saw "
        f"{', '.join(seen[:12] for seen in certificate.prior_saw) or 'none'}, prior {certificate.prior[:12]}, "
        f"posterior {certificate.model[:12]}, draws {certificate.digests()['draws'][:12]}",
        "made with": ", ".join(f"{name} {value}" for name, value in certificate.versions.items()),
        "checked": "the bound follows from the losses and the KL, and these counts from the configuration; check the "
        "draws with --replay and the training with --rerun"
        if made
        else "the bound follows from the losses and the KL; it has no configuration, so m, delta and the counts are "
        "taken as stated",
    }
    for name, text in lines.items():
        text = "".join(mark if mark.isprintable() else "?" for mark in text)  # the file may hold control characters
        console.print(f"{name:<12} {text}", highlight=False, soft_wrap=True, markup=False)


def _replay(console: Console, path: Path, draw: int, sample: int, data_dir: Path | None, device: str) -> None:
    again = draw_again(path, draw, sample=sample, data_dir=data_dir, device=device)
    for name, (kept, count) in again.kept.items():
        console.print(f"draw {draw}: {name} keeps {kept} of {count}", highlight=False)
    console.print(
        f"draw {draw}: loss {again.found:.6f} on {again.examples} examples, stated {again.stated:.6f}", highlight=False
    )
    pairs = {draw: (again.stated, again.found), **again.sample}
    differ = [t for t, (stated, found) in pairs.items() if stated != found]
    console.print(
        f"{len(pairs) - len(differ)} of {len(pairs)} draws have the loss that the file states; all but one were chosen "
        "at random",
        soft_wrap=True,
    )
    if differ:
        raise ValueError(
            f"draw {differ[0]} has the loss {pairs[differ[0]][1]:.6f}, but {path} states {pairs[differ[0]][0]:.6f}; "
            f"{len(differ)} of {len(pairs)} differ. If the run used another --device, rounding may change an example: "
            "repeat on that device"
        )


def _rerun(console: Console, path: Path, data_dir: Path | None, device: str) -> None:
    again = run_again(path, data_dir=data_dir, device=device)
    console.print(f"made again: risk <= {again.found.bound:.6f}, stated {again.stated.bound:.6f}", highlight=False)
    if not again.differences:
        console.print(
            "made again: prior, posterior, draws and bound equal those of the certificate, bit for bit", soft_wrap=True
        )
        return
    settings = ", ".join(
        f"{name} {'not recorded' if there is None else there} there and {here} here"
        for name, (there, here) in again.made_with.items()
    )
    raise ValueError(
        f"{path} is not the result of its configuration: {', '.join(again.differences)} differ. "
        + (
            f"Rounding may be the reason: {settings}. Repeat it with those settings"
            if settings
            else "Device, versions, threads and backend are the same, so rounding is not the reason"
        )
    )
