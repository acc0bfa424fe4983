"""``stochprune certify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stochprune.cli.options import Device, options_from, split, take
from stochprune.pac_bayes import (
    CertifyConfig,
    PriorConfig,
    RunConfig,
    SelfBoundConfig,
    load_certificate,
    run_certify,
)
from stochprune.pac_bayes import replay as draw_again
from stochprune.report import certificate_table, draw_certificates

PANELS = {RunConfig: "Run", PriorConfig: "Prior", SelfBoundConfig: "Posterior", CertifyConfig: "Certificate"}


@options_from(PANELS, without=("objective",))
def certify(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    device: Device = "",
    verify: Annotated[
        Path | None, typer.Option(help="Recompute the bound of this certificate from its account; nothing is run.")
    ] = None,
    replay: Annotated[
        int | None, typer.Option(help="With --verify: draw the network of this number again, and its loss.")
    ] = None,
    **values: Any,
) -> None:
    """Certify the risk of stochastic networks.

    Trains a prior on one part of the data, learns posteriors from it that minimise a PAC-Bayes bound on the rest, and
    prints certificates that hold with probability 1 - delta - delta_draws, beside that of the prior itself. Done work
    is kept: a run that was stopped goes on when started again. Writes a certificate for each posterior, results.json
    and results.png.
    """
    console = Console()
    if replay is not None and verify is None:
        raise ValueError("--replay needs --verify FILE, the certificate whose draw is to be repeated")
    if verify is not None:
        _verify(console, verify, replay, data_dir, device)
        return
    values["prior"] = PriorConfig(**take(PriorConfig, values))
    values["self_bound"] = SelfBoundConfig(**take(SelfBoundConfig, values))
    values["certify"] = CertifyConfig(**take(CertifyConfig, values))
    for name in ("posteriors", "objectives"):
        values[name] = split(name, values[name], str)
    folder, results = run_certify(RunConfig(**values), data_dir=data_dir, out=out, device=device)
    draw_certificates(results, folder / "results.png")
    console.print(certificate_table(results))
    console.print(f"{folder}/results.json, {folder}/results.png", highlight=False, soft_wrap=True)


def _verify(console: Console, path: Path, draw: int | None, data_dir: Path | None, device: str) -> None:
    certificate = load_certificate(path)
    lines = {
        "certificate": f"{certificate.loss} risk <= {certificate.bound:.6f} with probability "
        f"{1 - certificate.delta - certificate.delta_draws:.4g}",
        "examples": f"m = {certificate.m}, delta = {certificate.delta:g}, divided by {certificate.priors} priors",
        "draws": f"{certificate.draws} ({certificate.monte_carlo}), delta_draws = {certificate.delta_draws:g}, divided "
        f"by {certificate.posteriors} posteriors",
        "risk": f"mean of the draws {certificate.mean_loss:.6f}, bounded {certificate.empirical_risk:.6f}",
        "KL": f"{certificate.total_kl:.6g} nats: "
        + ", ".join(f"{name} {value:.4g}" for name, value in certificate.kl.items()),
        "seeds": f"{certificate.seed}, masks {certificate.mask_seed}",
        "digests": f"examples {certificate.certified[:12]}, prior saw "
        f"{', '.join(seen[:12] for seen in certificate.prior_saw) or 'none'}, posterior {certificate.model[:12]}",
    }
    for name, text in lines.items():
        console.print(f"{name:<12} {text}", highlight=False, soft_wrap=True)
    console.print(f"{path}: the bound follows from the account", highlight=False, soft_wrap=True)
    if draw is None:
        return
    again = draw_again(path, draw, data_dir=data_dir, device=device)
    for name, (kept, count) in again.kept.items():
        console.print(f"draw {draw}: {name} keeps {kept} of {count}", highlight=False)
    console.print(
        f"draw {draw}: loss {again.found:.6f} on {again.examples} examples, stated {again.stated:.6f}", highlight=False
    )
    if again.found != again.stated:
        raise ValueError(
            f"draw {draw} gives another loss than {path} states. On another --device than the run's, rounding may "
            "decide an example: repeat it there"
        )
