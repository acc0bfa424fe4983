"""Forged certificates: which check finds what is said in docs/bounds.md, and honest certificates pass all of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stochprune import backends
from stochprune.cli import app
from stochprune.pac_bayes import (
    CertifyConfig,
    PriorConfig,
    RunConfig,
    SelfBoundConfig,
    certify,
    load_certificate,
    make_posterior,
    replay,
    rerun,
    run_certify,
)
from stochprune.pac_bayes.trial import Trial
from stochprune.runs.files import CheckpointError, write_json
from stochprune.seeding import generator
from tests.pac_bayes.forgeries import FORGERIES, restate, table

DOCS = Path(__file__).parents[2] / "docs" / "bounds.md"
CHECKS = ("verify", "replay", "rerun")
TABLE = {name: dict(zip(CHECKS, found, strict=True)) for name, *found in table(DOCS.read_text(), "| forgery")}
UNSEEN = {
    "delta_draws = 0.97, in the configuration too",
    "other families left out, in the configuration too",
    "the last draws left out, in the configuration too",
}
"""An honest run of another configuration gives the same file: no file can show that the choice was made afterwards."""
SMALL = RunConfig(
    posteriors=("masks", "gaussian"),
    prior=PriorConfig(prior_epochs=2),
    self_bound=SelfBoundConfig(epochs=1, lr=0.2),
    certify=CertifyConfig(draws=60),
)
NAME = "masks-quadratic.json"


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    return run_certify(SMALL, out=tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A data set called mnist, of the digits' shape."""
    folder, numbers = tmp_path_factory.mktemp("mnist"), generator(0, "pixels")
    for part, count in (("train", 1437), ("t10k", 20)):
        pixels, labels = numbers.integers(0, 256, (count, 8, 8)), numbers.integers(0, 10, count)
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    return folder


@pytest.fixture
def path(honest, tmp_path) -> Path:
    """The certificate in a copy of the honest run's folder."""
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run" / NAME


def passes(check: str, path: Path, data_dir: Path | None = None) -> bool:
    """Return True if a check finds no difference, and False if it finds one or refuses the file."""
    try:
        if check == "verify":
            load_certificate(path)
        elif check == "replay":
            again = replay(path, 0, data_dir=data_dir)
            return all(stated == found for stated, found in [(again.stated, again.found), *again.sample.values()])
        else:
            again = rerun(path, data_dir=data_dir)
            assert not again.made_with
            return not again.differences
    except ValueError as error:
        assert str(path.parent) in str(error) or "the prior" in str(error), error
        return False
    return True


def test_the_table_holds_every_forgery():
    assert list(TABLE) == list(FORGERIES)
    assert {answer for row in TABLE.values() for answer in row.values()} == {"yes", "no"}


@pytest.mark.parametrize("name", [*FORGERIES])
def test_a_forgery_is_found_where_the_documentation_says(name, path, data_dir):
    honest_bound = load_certificate(path).bound
    FORGERIES[name](path)
    found = {check: "no" if passes(check, path, data_dir) else "yes" for check in CHECKS}
    assert found == TABLE[name]
    assert found["rerun"] == ("no" if name in UNSEEN else "yes")
    content = json.loads(path.read_text())
    print(f"{name}: {honest_bound:.4f} forged to {content['bound']:.4f}")


@pytest.mark.parametrize("name", ["masks-prior", "masks-quadratic", "gaussian-quadratic"])
def test_honest_certificates_pass_all(honest, name):
    path = honest / f"{name}.json"
    before = path.read_bytes()
    assert all(passes(check, path) for check in CHECKS)
    assert path.read_bytes() == before


def test_replay_and_rerun_repeat_the_trial(path):
    for use in (lambda: replay(path, 0), lambda: rerun(path)):
        for part in ("start", "end"):
            tried = mock.patch.object(Trial, part, side_effect=ValueError("the trial"))
            with tried, pytest.raises(ValueError, match="the trial"):
                use()


def test_control_characters_in_a_file_cannot_move_the_cursor(prior, parts, tmp_path):
    """It cannot add a line to the report either."""
    path, lie = tmp_path / "c.json", "digits\ncertificate  zero_one risk <= 0.000001\x1b[2A"
    certify(make_posterior(prior, "masks"), parts.certify, CertifyConfig(draws=20), data=lie).save(path)
    run = CliRunner().invoke(app, ["certify", "--verify", str(path)])
    assert run.exit_code == 0 and "\x1b" not in run.output
    assert [line[:12] for line in run.output.splitlines()].count("certificate ") == 1


def test_the_draws_of_a_replay_are_others_each_time(honest):
    samples = [tuple(replay(honest / NAME, 3, sample=5).sample) for _ in range(4)]
    assert len(set(samples)) > 1 and all(len(sample) == 5 and 3 not in sample for sample in samples)
    assert len(replay(honest / NAME, 3, sample=1000).sample) == 59
    with pytest.raises(ValueError, match=r"sample.*got -1"):
        replay(honest / NAME, 3, sample=-1)
    for draw in (-1, 60):
        with pytest.raises(ValueError, match=rf"{NAME}.*draws.*59, got {draw}"):
            replay(honest / NAME, draw)
    for value in (1.5, True):
        for bad in ({"draw": 3, "sample": value}, {"draw": value}):
            with pytest.raises(TypeError, match=rf"replay: .*got {value}"):
                replay(honest / NAME, **bad)


def test_no_byte_of_a_certificate_may_change(path):
    content = path.read_bytes()
    numbers = generator(0, "bytes")
    for index in numbers.permutation(len(content))[:400]:
        for flip in (1 << int(numbers.integers(8)), 0x20):
            changed = bytearray(content)
            changed[index] ^= flip
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=path.name):
                load_certificate(path)
    for changed in (content[:-1], content + b" ", content.replace(b"\n ", b"\n  ", 1), b" " + content):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=path.name):
            load_certificate(path)


FIELDS = {
    "m": [0, -1, 1.5, "5", True, None, 2**60],
    "delta": [0, 1, -0.1, "x", True, None],
    "delta_draws": [0, 1.5, None],
    "priors": [0, -3, 1.5, True],
    "posteriors": [0, 1.5, "2"],
    "kl": [{}, [1.0], {"a": -1.0}, {"a": "1"}, {"a": True}, {"a": None}],
    "loss": ["guess", 5, []],
    "monte_carlo": ["guess", None],
    "planned": [0, 59, 61, 1.5],
    "unit": [0, -1, 2, 0.05, "x", True],
    "losses": [[], [0.5] * 60, [True] * 60, [-1] * 60, [65] * 60, [0] * 59, {}, None, [10**18] * 60],
    "draw_examples": [-1, 7, 1.5, None],
    "seed": [-1, 1.5, True, None, 1],
    "mask_seed": [-1, 0, None],
    "data": [5, None, "x"],
    "dataset": ["x", 5, None, "0" * 64],
    "prior": ["x", 5, None, "A" * 64],
    "model": ["x", 5, None],
    "certified": ["x", 5, None, "0" * 64],
    "prior_saw": [[5], "x", None, ["x"], ["0" * 64] * 2],
    "prior_sizes": [[5], [0], [], "x", None, [1.5]],
    "configuration": [5, [], {}, {"data": "digits"}, "x"],
    "versions": [5, None],
    "notes": [5, None, {}, {"family": "laplace", "objective": "kl"}, {"family": [], "objective": {}}],
    "digests": [5, None, {}, {"draws": "0" * 64}],
    "bound": [0.01, "x", None, True],
    "total_kl": [0.0, None],
    "format": ["stochprune-certificate-1", None, 5],
}


def test_every_field_has_bad_values(path):
    stated = set(json.loads(path.read_text())) - {"digest"}
    assert stated - {"draws", "mean_loss", "empirical_risk"} == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_a_bad_field_is_named_with_its_file(path, name):
    content = json.loads(path.read_text())
    del content["digest"]
    for bad in [*FIELDS[name], "left out"]:
        changed = {**content, name: bad}
        if bad == "left out":
            del changed[name]
        write_json(path, changed)
        with pytest.raises(ValueError) as refusal:
            load_certificate(path)
        assert path.name in str(refusal.value)
        words = {"configuration", "losses", "split", "lacks"} | {name, "total_kl", "bound", "unit", "mask_seed"}
        assert any(word in str(refusal.value) for word in words), (bad, str(refusal.value))


def nothing(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


UNREADABLE = {
    "nothing": nothing,
    "folder": folder,
    "empty": lambda path: path.write_bytes(b""),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "half": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "another file of a run": lambda path: path.write_bytes((path.parent / "results.json").read_bytes()),
    "format 1": lambda path: path.write_text(json.dumps({"format": "stochprune-certificate-1", "m": 5})),
    "format 1 with a digest": lambda path: (path.unlink(), write_json(path, {"format": "stochprune-certificate-1"})),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("options", [(), ("--replay", "3"), ("--rerun",)])
def test_other_files_than_certificates_are_refused_in_one_line(path, name, options):
    UNREADABLE[name](path)
    with pytest.raises(ValueError, match=path.name):
        load_certificate(path)
    run = CliRunner().invoke(app, ["certify", "--verify", str(path), *options])
    assert run.exit_code == 1 and path.name in run.output and "Traceback" not in run.output
    for riddle in ("codec", "Errno", "choices must"):
        assert riddle not in run.output
    if "format 1" in name:
        assert "run" in run.output.lower() and ("again" in run.output or "older version" in run.output)


@pytest.mark.parametrize("file", ["configuration.json", "prior.pt", "masks-quadratic.pt"])
@pytest.mark.parametrize("fault", ["nothing", "folder", "empty", "not text", "half"])
def test_damaged_files_beside_a_certificate(path, file, fault):
    UNREADABLE[fault](path.parent / file)
    if (file, fault) == ("configuration.json", "nothing"):
        assert passes("replay", path)  # the certificate carries it
        return
    with pytest.raises((ValueError, CheckpointError), match=file.replace(".", r"\.")):
        replay(path, 0)


def test_a_certificate_alone_is_verified_and_made_again(path, tmp_path):
    alone = tmp_path / "alone.json"
    alone.write_bytes(path.read_bytes())
    assert passes("verify", alone) and passes("rerun", alone)
    restate(alone, losses=[0] * 60)
    assert passes("verify", alone) and not passes("rerun", alone)


def test_a_certificate_outside_of_a_run(prior, parts, tmp_path):
    path = tmp_path / "c.json"
    certify(make_posterior(prior, "masks"), parts.certify, CertifyConfig(draws=20), priors=3).save(path)
    assert load_certificate(path).priors == 3
    for again in (lambda: replay(path, 0), lambda: rerun(path)):
        with pytest.raises(ValueError, match=r"c\.json .*configuration"):
            again()


@pytest.mark.parametrize(("setting", "stated"), [("threads", 77), ("backend", "triton"), ("backend", None)])
def test_rerun_names_a_setting_that_differs(path, setting, stated):
    certificate = load_certificate(path)
    here = {"threads": torch.get_num_threads(), "backend": backends.resolve(torch.zeros(1)).NAME}
    settings = {**certificate.versions, setting: stated}
    if stated is None:  # as in files of earlier versions
        del settings[setting]
    dataclasses.replace(certificate, losses=[0] * 60, versions=settings).save(path)
    again = rerun(path)
    assert again.made_with == {setting: (stated, here[setting])}
    assert {"losses", "mean_loss", "bound"} <= set(again.differences) and again.found.bound > again.stated.bound
    run = CliRunner().invoke(app, ["certify", "--verify", str(path), "--rerun", "--device", "cpu"])
    named = f"{setting} {'not recorded' if stated is None else stated} there and {here[setting]} here"
    assert run.exit_code == 1 and named in run.output and "losses" in run.output


def test_a_certificate_records_the_backend_that_sampled_its_networks(prior, parts, monkeypatch):
    for backend in ("reference", backends.resolve(torch.zeros(1)).NAME):
        monkeypatch.setenv(backends.OVERRIDE, backend)
        certificate = certify(make_posterior(prior, "masks"), parts.certify, CertifyConfig(draws=20))
        assert certificate.versions["backend"] == backend


def test_the_command_makes_all_checks(honest):
    arguments = ["certify", "--verify", str(honest / NAME), "--replay", "0", "--sample", "7", "--rerun"]
    run = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert run.exit_code == 0, run.output
    assert "8 of 8 draws" in run.output and "bit for bit" in run.output
    run = CliRunner().invoke(app, ["certify", "--rerun"])
    assert run.exit_code == 1 and "--verify" in run.output
