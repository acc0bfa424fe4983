"""From a data set to certificates, verified and replayed; and on the command line."""

from __future__ import annotations

import dataclasses
import re
import struct

import numpy as np
import pytest
from typer.testing import CliRunner

from stochprune.cli import app
from stochprune.pac_bayes import (
    CertifyConfig,
    PriorConfig,
    RunConfig,
    SelfBoundConfig,
    load_certificate,
    replay,
    run_certify,
)
from stochprune.report.certificates import certificate_table, plot_certificates
from stochprune.runs import CheckpointError, load_tensors, read_json, save_tensors, write_json

TINY = RunConfig(
    posteriors=("masks", "gaussian"),
    prior=PriorConfig(prior_epochs=6),
    self_bound=SelfBoundConfig(epochs=1, lr=0.2),
    certify=CertifyConfig(draws=60),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_certify(TINY, out=tmp_path_factory.mktemp("runs"))


def test_rows_and_choices(finished):
    folder, results = finished
    names = [(row["family"], row["objective"]) for row in results["rows"]]
    assert names == [(f, o) for f in ("masks", "gaussian") for o in ("prior", "quadratic")]
    for row in results["rows"]:
        certificate = load_certificate(folder / f"{row['family']}-{row['objective']}.json")
        assert (certificate.priors, certificate.posteriors) == (2, 4)
        assert certificate.bound == row["bound"] and 0.02 < row["mean_loss"] < row["bound"] < 0.6
        assert certificate.m == 719 and len(certificate.prior_saw) == 1
        assert abs(row["test_error"] - row["mean_loss"]) < 0.06
    control, learnt = results["rows"][:2]
    assert control["total_kl"] < 1e-6 < learnt["total_kl"]


def test_a_second_run_takes_what_is_done(finished):
    def contents(folder):
        return {path.name: path.read_bytes() for path in folder.glob("*.json")}

    before = contents(finished[0])
    assert run_certify(TINY, out=finished[0].parent) == finished
    assert contents(finished[0]) == before


@pytest.mark.parametrize("name", ["masks-quadratic", "gaussian-quadratic", "masks-prior"])
def test_replay(finished, name):
    path = finished[0] / f"{name}.json"
    certificate = load_certificate(path)
    for draw in (0, 59):
        found = replay(path, draw)
        assert found.found == found.stated == certificate.losses[draw] / 64
        kept, count = found.kept.get("fc1.weight", (18240, 19200))
        assert count == 19200 and abs(kept / count - 0.95) < 0.01
    assert bool(found.kept) == name.startswith("masks")
    with pytest.raises(ValueError, match=r"draws.*59, got 60"):
        replay(path, 60)


def test_certificates_of_random_convolutions(tmp_path):
    """Their KL counts every layer; they are verified, replayed, and refused for another posterior."""
    prior = PriorConfig(prior_epochs=1, prior_lr=3e-3)
    config = RunConfig(
        model="pbb_cnn",
        posteriors=("gaussian", "spike_and_slab"),
        prior=prior,
        self_bound=SelfBoundConfig(epochs=1, lr=0.2),
        certify=CertifyConfig(draws=20),
    )
    folder, results = run_certify(config, out=tmp_path)
    for row in results["rows"]:
        path = folder / f"{row['family']}-{row['objective']}.json"
        certificate = load_certificate(path)
        assert list(certificate.kl) == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
        assert all((value > 1e-4) == (row["objective"] != "prior") for value in certificate.kl.values()), certificate.kl
        found = replay(path, 19)
        assert found.found == found.stated == certificate.losses[19] / 64
        assert list(found.kept) == ([] if row["family"] == "gaussian" else list(certificate.kl))
    state = load_tensors(folder / "gaussian-quadratic.pt")
    state["conv1.rho"][0, 0, 0, 0] += 1
    save_tensors(folder / "gaussian-quadratic.pt", state)
    with pytest.raises(ValueError, match=r"gaussian-quadratic\.pt .*posterior"):
        replay(folder / "gaussian-quadratic.json", 0)


def test_replay_refuses_a_kl_that_is_not_the_posteriors(finished, tmp_path):
    for path in finished[0].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "masks-quadratic.json"
    certificate = load_certificate(path)
    kl = {**certificate.kl, "fc2.weight": certificate.kl["fc2.weight"] / 2}
    dataclasses.replace(certificate, kl=kl).save(path)
    assert load_certificate(path).bound < certificate.bound  # consistent in itself
    with pytest.raises(ValueError, match=r"masks-quadratic\.json .*fc2\.weight"):
        replay(path, 0)


def test_replay_of_another_posterior_is_refused(finished, tmp_path):
    for path in finished[0].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_tensors(tmp_path / "masks-quadratic.pt")
    state["fc1.weight"][0, 0] += 1
    save_tensors(tmp_path / "masks-quadratic.pt", state)
    with pytest.raises(ValueError, match=r"masks-quadratic\.pt .*posterior"):
        replay(tmp_path / "masks-quadratic.json", 0)
    (tmp_path / "masks-quadratic.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"masks-quadratic\.pt"):
        replay(tmp_path / "masks-quadratic.json", 0)
    configuration = read_json(tmp_path / "configuration.json", "configuration")
    configuration["seed"] = 1
    write_json(tmp_path / "configuration.json", configuration)
    with pytest.raises(ValueError, match=r"configuration\.json .*masks-quadratic\.json"):
        replay(tmp_path / "masks-quadratic.json", 0)
    write_json(tmp_path / "configuration.json", {})
    with pytest.raises(ValueError, match=r"configuration\.json"):
        replay(tmp_path / "masks-quadratic.json", 0)


def test_report(finished, tmp_path):
    plot_certificates(finished[1], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert certificate_table(finished[1]).row_count == 4


def test_a_data_free_run(tmp_path):
    prior = PriorConfig(prior_fraction=0.0, keep=0.5)
    learning = SelfBoundConfig(epochs=12, lr=0.1, batch_size=128, kl_penalty=0.05)
    config = dataclasses.replace(TINY, posteriors=("masks",), prior=prior, self_bound=learning)
    _, results = run_certify(config, out=tmp_path)
    assert [row["m"] for row in results["rows"]] == [1437, 1437]
    assert results["rows"][1]["mean_loss"] < 0.7 < 0.8 < results["rows"][0]["mean_loss"]


def test_what_was_tried_before_is_paid_for(finished, tmp_path):
    tried = dataclasses.replace(TINY, tried_priors=3, tried_certificates=9)
    folder, results = run_certify(tried, out=tmp_path)
    for row, before in zip(results["rows"], finished[1]["rows"], strict=True):
        certificate = load_certificate(folder / f"{row['family']}-{row['objective']}.json")
        assert (certificate.priors, certificate.posteriors) == (5, 13)
        assert row["mean_loss"] == before["mean_loss"] and row["bound"] > before["bound"]


def test_a_run_on_idx_files(tmp_path):
    """Images of one's own: 9 x 7 pixels, three classes, each a bright third with noise."""
    numbers = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 60)):
        y = numbers.integers(3, size=count).astype(np.uint8)
        x = numbers.integers(100, size=(count, 9, 7), dtype=np.uint8)
        for label in range(3):
            x[y == label, 3 * label : 3 * label + 3] += 60
        for name, array in (("images-idx3", x), ("labels-idx1", y)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())
    options = ("--data", "idx", "--data-dir", tmp_path, "--posteriors", "masks", "--prior-epochs", 10, "--epochs", 1)
    result = invoke(*options, "--draws", 100, "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    certificate = load_certificate(folder / "masks-quadratic.json")
    assert (certificate.m, certificate.prior_sizes, certificate.data) == (150, [150], "idx")
    assert certificate.mean_loss < 0.1 < certificate.bound < 0.4
    again = invoke("--verify", folder / "masks-quadratic.json", "--replay", 3, "--rerun", "--data-dir", tmp_path)
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posteriors": ()}, "posteriors.*got none"),
        ({"posteriors": ("masks", "laplace")}, "'laplace'.*gaussian"),
        ({"objectives": ("kl", "kl")}, "objectives.*got kl, kl"),
        ({"objectives": ("best",)}, "objective.*got 'best'"),
        ({"tried_priors": -1}, "tried_priors.*got -1"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**options)


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["certify", *map(str, arguments)])


def test_command(tmp_path):
    options = ("--posteriors", "masks", "--prior-epochs", 1, "--epochs", 1, "--draws", 20, "--out", tmp_path)
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.iterdir()
    assert (folder / "results.png").exists() and "masks" in result.output
    certificate = folder / "masks-quadratic.json"
    result = invoke("--verify", certificate, "--replay", 7)
    assert result.exit_code == 0, result.output
    for part in ("m = 719", "draw 7: fc1.weight", "draw 7: loss"):
        assert part in result.output
    content = read_json(certificate, "certificate")
    write_json(certificate, content | {"bound": 0.001})
    result = invoke("--verify", certificate)
    assert result.exit_code == 1 and "bound = 0.001" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--replay", 3), "--replay .*--verify"),
        (("--posteriors", "laplace", "--prior-epochs", 1), "'laplace'"),
        (("--verify", "missing.json"), "missing.json"),
        (("--delta", 2), "delta.*got 2.0"),
        (("--model", "lenet"), "model 'lenet'"),
    ],
)
def test_errors_are_one_line(tmp_path, options, message):
    result = invoke(*options, "--out", tmp_path)
    assert result.exit_code == 1 and re.search(message, result.output) and "Traceback" not in result.output
