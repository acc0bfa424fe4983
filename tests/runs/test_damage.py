"""A file that has changed is refused, or gives what it gave: never other numbers. Every file of every owner."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from stochprune.runs import CheckpointError, load_tensors, read_json, save_tensors
from tests.runs.owners import OWNERS, TRAINERS
from tests.runs.test_killed import bits

REPORTS = {".png", ".csv", ".md"}
"""Nothing reads these back."""


@pytest.fixture(scope="module", params=OWNERS)
def finished(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    return OWNERS[request.param], out, bits(OWNERS[request.param](out))


def files(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.is_file() and path.suffix not in REPORTS)


def content(path: Path) -> object:
    return bits(read_json(path, "file") if path.suffix == ".json" else load_tensors(path))


def damaged(whole: bytes, seed: str) -> list[bytes]:
    """Return copies of the content: 60 with one flipped bit, and 20 that are cut."""
    numbers = random.Random(seed)
    places = [numbers.randrange(8 * len(whole)) for _ in range(60)]
    flipped = [whole[: p // 8] + bytes([whole[p // 8] ^ 1 << p % 8]) + whole[p // 8 + 1 :] for p in places]
    lengths = [0, 1, len(whole) - 1, *(numbers.randrange(len(whole)) for _ in range(17))]
    return flipped + [whole[:length] for length in lengths]


def test_every_file_is_refused_or_gives_what_it_gave(finished):
    _, out, _ = finished
    assert files(out)
    for path in files(out):
        assert path.suffix in (".json", ".pt"), f"{path} has no digest"
        whole, expected, refused = path.read_bytes(), content(path), 0
        for data in damaged(whole, path.name):
            path.write_bytes(data)
            try:
                assert content(path) == expected
            except CheckpointError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
        path.write_bytes(whole)
        assert refused >= 79, f"{path}: {80 - refused} of 80 changes were taken"


def test_a_run_on_a_damaged_file_ends_as_before_or_is_refused(finished, tmp_path):
    """Through the owner itself, which may read the file or write it anew."""
    run, out, expected = finished
    numbers = random.Random(1)
    read = 0
    for path in files(out):
        copy = tmp_path / "copy"
        shutil.copytree(out, copy)
        target = copy / path.relative_to(out)
        data = bytearray(target.read_bytes())
        place = numbers.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        target.write_bytes(data)
        try:
            assert bits(run(copy)) == expected
        except CheckpointError:
            read += 1
        shutil.rmtree(copy)
    assert read


def moments_of(payload: dict) -> list[dict]:
    return list(payload["optimizer"]["state"].values()) if "optimizer" in payload else []


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(
    "change",
    [
        lambda payload: payload.pop("position", None) or payload.pop("losses", None),
        lambda payload: payload.update(model=3, losses=3),
        lambda payload: payload["position"].update(batch=10**6) if "position" in payload else None,
        lambda payload: payload["position"].update(step=-1) if "position" in payload else None,
        lambda payload: payload["position"].update(epoch=1.0) if "position" in payload else None,
        lambda payload: payload["position"].update(epoch=99) if "position" in payload else None,
        lambda payload: payload["position"]["history"].append({}) if "position" in payload else None,
        lambda payload: payload["position"].update(loss=float("nan")) if "position" in payload else None,
        lambda payload: payload["position"].update(steps_per_epoch=5) if "position" in payload else None,
        lambda payload: payload["optimizer"]["param_groups"].clear() if "optimizer" in payload else None,
        lambda payload: payload["optimizer"]["param_groups"][0].pop("lr") if "optimizer" in payload else None,
        lambda payload: payload["optimizer"]["param_groups"][0].update(lr="1") if "optimizer" in payload else None,
        lambda payload: [moments.pop("exp_avg", None) for moments in moments_of(payload)[:1]],
        lambda payload: [moments.update(exp_avg=torch.zeros(1)) for moments in moments_of(payload)],
        lambda payload: [moments.update(exp_avg=torch.zeros(2, 3, 5, 6)) for moments in moments_of(payload)],
        lambda payload: payload["position"].update(step=10**6) if "position" in payload else None,
        lambda payload: payload["model"].update({3: torch.ones(1)}) if "model" in payload else None,
        lambda payload: payload["model"].clear() if "model" in payload else None,
        lambda payload: payload["losses"].append(10**6) if "losses" in payload else None,
        lambda payload: payload["losses"].extend([0] * 99) if "losses" in payload else None,
    ],
)
def test_positions_counters_and_keys_are_checked(tmp_path, name, change):
    """The digests of these checkpoints are right, as if another version of this program had written them."""
    TRAINERS[name](tmp_path)
    changed = 0
    for path in tmp_path.rglob("checkpoint.pt"):
        before, payload = bits(load_tensors(path)), load_tensors(path)
        change(payload)
        if bits(payload) != before:
            changed += 1
            save_tensors(path, payload)
    if changed:
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
            TRAINERS[name](tmp_path)
