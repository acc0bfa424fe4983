"""A forger of certificates: edits the folder of an honest run, and computes every digest and number again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from stochprune import data
from stochprune.data.splits import Subset, digests_of_split, split
from stochprune.models import build
from stochprune.nn import convert
from stochprune.pac_bayes import Prior, RunConfig, load_certificate, make_posterior, run_certify
from stochprune.pac_bayes.certify import certify, model_digest
from stochprune.pac_bayes.prior import train_prior
from stochprune.pac_bayes.verify import parsed_configuration
from stochprune.runs.files import load_tensors, save_tensors, write_json

Forgery = Callable[[Path], None]
MADE = ("m", "kl", "unit", "losses", "prior", "model", "certified", "prior_saw", "prior_sizes")
"""Fields of a certificate that follow from a prior, a posterior and a part."""


def restate(path: Path, configured: dict[str, Any] | None = None, **changes: Any) -> None:
    """State other fields, and an account, digests and a file that follow from them.

    Args:
        configured: fields of the configuration, in the certificate and beside it; ``section.field`` goes deeper.
    """
    certificate = load_certificate(path)
    content = json.loads(json.dumps(certificate.configuration))
    for name, value in (configured or {}).items():
        section, _, field = name.partition(".")
        if field:
            content[section][field] = value
        else:
            content[section] = value
    write_json(path.parent / "configuration.json", content)
    dataclasses.replace(certificate, configuration=content, **changes).save(path)


def rebuilt(path: Path) -> tuple[RunConfig, Prior, Any]:
    """The configuration, the prior and the split of a run, from its files."""
    config = parsed_configuration(load_certificate(path).configuration, path)
    dataset = data.load(config.data, standardised=False)
    parts = split(dataset.train_x, dataset.train_y, config.prior.prior_fraction, config.seed)
    model = convert(build(config.model, dataset.shape, dataset.num_classes, config.seed), seed=config.seed)
    model.load_state_dict(load_tensors(path.parent / "prior.pt"))
    return config, Prior(model, (parts.prior,), config.prior.sigma), parts


def a_larger_data_set(path: Path) -> None:
    config = parsed_configuration(load_certificate(path).configuration, path)
    dataset = "0" * 64
    (seen, size), (certified, m) = digests_of_split(dataset, 200_000, config.prior.prior_fraction, config.seed)
    restate(path, m=m, dataset=dataset, certified=certified, prior_saw=[seen], prior_sizes=[size])


def losses_of_zero_but_one(path: Path) -> None:
    losses = load_certificate(path).losses
    restate(path, losses=[losses[0]] + [0] * (len(losses) - 1))


def a_tenth_of_the_losses_lowered(path: Path) -> None:
    losses = list(load_certificate(path).losses)
    for t in sorted(range(len(losses)), key=lambda t: -losses[t])[: len(losses) // 10]:
        losses[t] = 0
    restate(path, losses=losses)


def the_last_draws_left_out(path: Path) -> None:
    restate(path, {"certify.draws": 40}, losses=load_certificate(path).losses[:40], planned=40)


def without_a_configuration(path: Path) -> None:
    dataclasses.replace(load_certificate(path), configuration=None, m=10**9, priors=1, posteriors=1).save(path)


def the_worst_draws_left_out(path: Path) -> None:
    losses = sorted(load_certificate(path).losses)[:40]
    restate(path, losses=losses, planned=40)


def a_trained_prior_called_data_free(path: Path) -> None:
    _, prior, parts = rebuilt(path)
    (certified, m) = digests_of_split(parts.certify.dataset, 1437, 0.0, 0)[0]
    digest = Prior(prior.model, (), prior.sigma).digest
    changes = {"m": m, "certified": certified, "prior_saw": [], "prior_sizes": [], "prior": digest}
    restate(path, {"prior.prior_fraction": 0.0}, **changes)


def another_posterior(path: Path) -> None:
    _, prior, _ = rebuilt(path)
    posterior = make_posterior(prior, "masks")
    posterior.model.load_state_dict(load_tensors(path.with_suffix(".pt")))
    for layer in posterior.layers.values():
        layer.mask_logits.data.sub_(3.0)
    save_tensors(path.with_suffix(".pt"), posterior.model.state_dict())
    kl = {name: value.item() for name, value in posterior.kl().items()}
    restate(path, model=model_digest(posterior), kl=kl)


def another_prior(path: Path) -> None:
    """State the posterior's own logits as those of the prior, so that the KL is 0."""
    _, prior, _ = rebuilt(path)
    prior.model.load_state_dict(load_tensors(path.with_suffix(".pt")))
    save_tensors(path.parent / "prior.pt", prior.model.state_dict())
    changed = Prior(prior.model, prior.seen, prior.sigma)
    restate(path, prior=changed.digest, kl=dict.fromkeys(load_certificate(path).kl, 0.0))


def halved_divergence(path: Path) -> None:
    restate(path, kl={name: value / 2 for name, value in load_certificate(path).kl.items()})


def with_draws_of_its_own(
    path: Path, prior: Prior, part: Subset, shift: float = 0.0, fraction: float | None = None
) -> None:
    """Replace the honest certificate by that of this prior and a posterior with ``shift`` added to every logit."""
    old = load_certificate(path)
    posterior = make_posterior(prior, "masks")
    for layer in posterior.layers.values():
        layer.mask_logits.data.add_(shift)
    save_tensors(path.parent / "prior.pt", prior.model.state_dict())
    save_tensors(path.with_suffix(".pt"), posterior.model.state_dict())
    config = parsed_configuration(old.configuration, path).certify
    made = certify(posterior, part, config, priors=old.priors, posteriors=old.posteriors, data=old.data)
    changes = {field: getattr(made, field) for field in MADE}
    restate(path, {} if fraction is None else {"prior.prior_fraction": fraction}, **changes)


def another_posterior_with_its_draws(path: Path) -> None:
    _, prior, parts = rebuilt(path)
    with_draws_of_its_own(path, prior, parts.certify, shift=-1.0)


def another_prior_with_its_draws(path: Path) -> None:
    _, prior, parts = rebuilt(path)
    prior.model.load_state_dict(load_tensors(path.with_suffix(".pt")))
    with_draws_of_its_own(path, Prior(prior.model, prior.seen, prior.sigma), parts.certify)


def a_data_free_prior_with_its_draws(path: Path) -> None:
    config, prior, _ = rebuilt(path)
    dataset = data.load(config.data, standardised=False)
    whole = split(dataset.train_x, dataset.train_y, 0.0, config.seed).certify
    with_draws_of_its_own(path, Prior(prior.model, (), prior.sigma), whole, fraction=0.0)


def a_prior_trained_on_the_certifying_part(path: Path) -> None:
    """Everything else is honest: the posterior is learnt from that prior, and its networks are sampled."""
    config, _, parts = rebuilt(path)
    some = slice(len(parts.prior))
    lie = dataclasses.replace(parts.prior, x=parts.certify.x[some], y=parts.certify.y[some])

    def cheat(model: Any, part: Any, *args: Any, **kwargs: Any) -> Prior:
        return Prior(train_prior(model, lie, *args, **kwargs).model, (part,), config.prior.sigma)

    with mock.patch("stochprune.pac_bayes.run.train_prior", cheat):
        folder, _ = run_certify(config, out=path.parent / "cheat")
    for file in folder.iterdir():
        if file.is_file():
            (path.parent / file.name).write_bytes(file.read_bytes())


FORGERIES: dict[str, Forgery] = {
    "m = 10^9": lambda path: restate(path, m=10**9),
    "m = 10^9, in a data set of twice as many": lambda path: restate(path, m=10**9, prior_sizes=[10**9]),
    "m = 100,000, in a data set made up for it": a_larger_data_set,
    "priors = 1": lambda path: restate(path, priors=1),
    "posteriors = 1": lambda path: restate(path, posteriors=1),
    "delta = 0.98": lambda path: restate(path, delta=0.98),
    "delta = 0.98, in the configuration too": lambda path: restate(path, {"certify.delta": 0.98}, delta=0.98),
    "delta_draws = 0.97, in the configuration too": lambda path: restate(
        path, {"certify.delta_draws": 0.97}, delta_draws=0.97
    ),
    "other families left out, in the configuration too": lambda path: restate(
        path, {"posteriors": ["masks"]}, priors=1, posteriors=2
    ),
    "m = 10^9 and no counts, the configuration left out": without_a_configuration,
    "every loss 0 but one": losses_of_zero_but_one,
    "a tenth of the losses lowered": a_tenth_of_the_losses_lowered,
    "the worst draws left out": the_worst_draws_left_out,
    "the last draws left out, in the configuration too": the_last_draws_left_out,
    "another seed of the masks": lambda path: restate(path, mask_seed=5),
    "another seed of the draws": lambda path: restate(path, seed=5),
    "nothing seen by the prior": lambda path: restate(path, prior_saw=[], prior_sizes=[]),
    "another part seen by the prior": lambda path: restate(path, prior_saw=["0" * 64]),
    "a trained prior called data-free": a_trained_prior_called_data_free,
    "a trained prior called data-free, its networks drawn": a_data_free_prior_with_its_draws,
    "another data set's name": lambda path: restate(path, data="mnist"),
    "another data set's name, in the configuration too": lambda path: restate(path, {"data": "mnist"}, data="mnist"),
    "a divergence halved": halved_divergence,
    "another posterior": another_posterior,
    "another posterior, its networks drawn": another_posterior_with_its_draws,
    "another prior": another_prior,
    "another prior, its networks drawn": another_prior_with_its_draws,
    "a prior trained on the certifying part": a_prior_trained_on_the_certifying_part,
    "another test error": lambda path: restate(path, notes={**load_certificate(path).notes, "test_error": 0.0}),
}


def table(text: str, header: str) -> Iterator[list[str]]:
    """The rows of the Markdown table whose header starts with ``header``."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(header):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    return
                yield [cell.strip() for cell in row.strip("|").split("|")]
