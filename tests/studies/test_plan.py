"""Studies as YAML files: what is read, and what is refused in the user's words."""

from __future__ import annotations

import pytest

from stochprune import studies
from stochprune.studies.plan import Block

MINIMAL = """
title: T
job: initialisation
data: [digits]
models: [lenet_300_100]
seeds: 2
grid:
  - scores: [snip, {prospr: {steps: 2, lr: 0.1}}]
    sparsities: [0.5, 0.9]
    ablations: [none, shuffle+reinitialise]
  - scores: [snip, random]
    sparsities: [0.9]
settings:
  per_class: 3
  weights: {epochs: 2, lr: 1e-3}
small:
  seeds: 1
  settings: {weights: {epochs: 1}}
"""


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_file_is_a_grid_of_cells(tmp_path):
    plan = studies.load(write(tmp_path, MINIMAL))
    assert (plan.name, plan.seeds, plan.settings.per_class, plan.settings.weights.lr) == ("mine", 2, 3, 1e-3)
    assert plan.grid[1] == Block((("snip", ()), ("random", ())), (0.9,), ("none",))
    cells = list(plan.cells("digits"))
    assert len(cells) == len(set(cells)) == 2 * (1 + 2 * 2 * 2 + 1)  # dense, the product, random; snip at 0.9 is known
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    dense = [cell for cell in cells if cell.sparsity == 0]
    assert len(dense) == 2 and all(cell.ablation == "none" for cell in dense)
    assert {cell.label for cell in cells} == {"magnitude", "snip", "random", "prospr lr=0.1 steps=2"}


def test_numbers_that_yaml_takes_for_text(tmp_path):
    plan = studies.load(write(tmp_path, MINIMAL.replace("lr: 0.1", "lr: 1e-1")))
    assert plan.grid[0].scores[1] == ("prospr", (("lr", 0.1), ("steps", 2)))


def test_the_small_version_overrides_what_it_names(tmp_path):
    plan = studies.load(write(tmp_path, MINIMAL), small=True)
    assert (plan.name, plan.seeds, plan.settings.weights.epochs) == ("mine-small", 1, 1)
    assert plan.settings.per_class == 3 and plan.settings.weights.lr == 1e-3


@pytest.mark.parametrize("name", [name for name in studies.SHIPPED if not name.startswith(("language", "cert"))])
@pytest.mark.parametrize("small", [False, True])
def test_shipped_studies_load(name, small):
    plan = studies.load(name, small)
    data, model = ("cifar10", "small_cnn") if name.endswith("cifar10") else ("mnist", "lenet_300_100")
    assert (plan.data, plan.models) == (("digits" if small else data,), (model,))


def test_studies_share_their_cells():
    immune, prospr = (set(studies.load(name).cells("mnist")) for name in ("immune", "prospr"))
    assert len(immune & prospr) == 3 * (1 + 5 * 3)  # dense, and five scores as they are


def test_every_part_of_a_cell_has_its_folder():
    cells = list(studies.load("immune").cells("mnist"))
    assert len({cell.folder for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds: 2", "seeds: 0"), "seeds.*got 0"),
        (("seeds: 2", "seeds: two"), "mine: seeds.*got 'two'"),
        (("title: T", "titel: T"), "mine: .*'titel'.*name, title, job"),
        (("title: T\n", ""), "mine: title"),
        (("job: initialisation", "job: prune"), "mine: job.*got 'prune'"),
        (("job: initialisation", "job: {a: b}"), "mine: job.*got {'a': 'b'}"),
        (("per_class: 3", "per_clas: 3"), "mine: .*'per_clas'.*per_class"),
        (("epochs: 2", "epochs: -1"), "epochs.*got -1"),
        (("[0.5, 0.9]", "most"), "mine: grid: sparsities.*got 'most'"),
        (("[0.5, 0.9]", "[0.5, most]"), "mine: grid: sparsities.*got 'most'"),
        (("data: [digits]", "data: []"), "mine: data "),
        (("title: T", "title: ["), "YAML"),
        (("weights: {epochs: 2, lr: 1e-3}", "weights: 3"), "mine: weights.*got 3"),
        (
            ("{prospr: {steps: 2, lr: 0.1}}", "{prospr: 3}"),
            r"got \{'prospr': 3\}",
        ),
        (("{prospr: {steps: 2, lr: 0.1}}", "{prospr: {}, snip: {}}"), "mine: .*score.*got .*prospr.*snip"),
        (("lr: 0.1}", "lr: [1]}"), r"lr of prospr.*got \[1\]"),
    ],
)
def test_bad_files_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        studies.load(write(tmp_path, MINIMAL.replace(*change, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[snip, {", "[snap, {"), "score 'snap'"),
        (("steps: 2", "step: 2"), "prospr .*'step'.*steps, lr, momentum"),
        (("[0.5, 0.9]", "[0.5, 1.0]"), "sparsit.*got 1.0"),
        (("shuffle+", "shuffel+"), "ablation 'shuffel'.*none, invert, shuffle"),
    ],
)
def test_bad_cells_are_refused_before_any_work(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        studies.run(studies.load(write(tmp_path, MINIMAL.replace(*change, 1))), out=tmp_path / "runs")
    assert not (tmp_path / "runs" / "cells").exists()


def test_a_name_that_is_no_study(tmp_path):
    with pytest.raises(ValueError, match=r"'imune'.*immune, prospr, finetune"):
        studies.load("imune")
    with pytest.raises(ValueError, match="'small'"):
        studies.load(write(tmp_path, MINIMAL.split("small:")[0]), small=True)


def test_a_wrong_score_in_the_last_block_is_refused_before_the_first_runs(tmp_path):
    last = MINIMAL.replace("[snip, random]", "[snip, snap]")
    with pytest.raises(ValueError, match="score 'snap'"):
        studies.load(write(tmp_path, last))


def test_fine_tuning_studies_take_names_only(tmp_path):
    text = "title: T\njob: finetune\ndata: [digits]\nmodels: [lenet_300_100]\nseeds: 1\n"
    text += "grid: [{scores: [%s], sparsities: [0.9]}]\n"
    with pytest.raises(ValueError, match="options"):
        studies.load(write(tmp_path, text % "{prospr: {steps: 1}}"))
    with pytest.raises(ValueError, match=r"seeds.*settings"):
        studies.load(write(tmp_path, text % "snip" + "settings: {seeds: 3}\n"))
    for field in ("seed: 1", "sparsity: 0.5"):
        with pytest.raises(ValueError, match=f"{field[:4]}.* of finetune"):
            studies.load(write(tmp_path, text % "snip" + f"settings: {{finetune: {{{field}}}}}\n"))


ARMS = """
title: T
job: methods
data: [digits]
models: [lenet_300_100]
seeds: 2
grid:
  - sparsities: [0.5, 0.9]
    arms:
      magnitude: {method: one_shot}
      gradual: {method: gradual_magnitude, every: 5}
  - sparsities: [0.9, 0.95]
    arms:
      magnitude: {method: one_shot}
"""


def test_an_arm_in_two_blocks_is_one_cell(tmp_path):
    """A second one would make confidence intervals too narrow."""
    cells = list(studies.load(write(tmp_path, ARMS)).method_cells("digits"))
    assert len(cells) == len(set(cells)) == 2 * (4 + 1)


def test_one_name_is_one_arm_at_a_sparsity(tmp_path):
    head, _, last = ARMS.rpartition("{method: one_shot}")
    other = f"{head}{{method: one_shot, score: random}}{last}"
    with pytest.raises(ValueError, match=r"0\.9.*'magnitude'"):
        studies.load(write(tmp_path, other))
    apart = studies.load(write(tmp_path, other.replace("[0.9, 0.95]", "[0.95]")))
    assert len(list(apart.method_cells("digits"))) == 2 * (4 + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("every: 5", 'pattern: "2:4"'), r"2:4 prunes 0\.5.*0\.9"),
        (("[0.9, 0.95]", "[]"), "sparsities"),
    ],
)
def test_cells_that_cannot_run_are_refused_before_the_first_runs(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        studies.load(write(tmp_path, ARMS.replace(*change)))
