"""Model families of torchvision and timm as users have them: converted, trained for a step, hardened, exported.

``python -m tests.nn.families`` runs all of them and writes ``docs/results/drop-in.md``.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stochprune as sp
from stochprune.nn import registry
from tests.nn.vision import available

CLASSES = 4
PAGE = Path(__file__).parents[2] / "docs" / "results" / "drop-in.md"
DATA = PAGE.with_suffix(".json")


@dataclass(frozen=True)
class Family:
    """One model of a family.

    Attributes:
        name: of the function that builds it, in ``torchvision.models`` or, through ``create_model``, in timm.
        size: of the images.
        options: of the function.
        way: the options with which convert takes the model, where it refuses it by name without them.
        reads: a module that reads the weights of its children itself, as in ``F.linear(x, self.qkv.weight)``, and
            their names: it is registered as a MaskedModule.
    """

    library: str
    name: str
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    way: dict[str, Any] = field(default_factory=dict)
    reads: tuple[str, tuple[str, ...]] | None = None

    def build(self) -> nn.Module:
        options = {"num_classes": CLASSES, **self.options}
        if self.library == "torchvision":
            made: nn.Module = getattr(importlib.import_module("torchvision.models"), self.name)(**options)
            return made
        return importlib.import_module("timm").create_model(self.name, **options)


SUBCLASSES = {"allow_subclasses": True}


def _vision(*rows: Any) -> list[Family]:
    return [Family("torchvision", *((row,) if isinstance(row, str) else row)) for row in rows]


def _timm(*rows: Any) -> list[Family]:
    return [Family("timm", *((row,) if isinstance(row, str) else row)) for row in rows]


SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
_SWIN = "torchvision.models.swin_transformer"
FAMILIES = _vision(
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    ("googlenet", 64, {"aux_logits": False, "init_weights": False}),
    ("inception_v3", 80, {"aux_logits": False, "init_weights": False}),
    ("maxvit_t", 224),
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    ("swin_t", 64, {}, {}, (f"{_SWIN}.ShiftedWindowAttention", ("qkv.weight", "proj.weight"))),
    ("swin_v2_t", 64, {}, {}, (f"{_SWIN}.ShiftedWindowAttentionV2", ("qkv.weight", "proj.weight"))),
    "vgg11",
    ("vit_b_16", 32, {"image_size": 32}),
) + _timm(
    ("beit_base_patch16_224", 32, SMALL_VIT, {}, ("timm.models.beit.Attention", ("qkv.weight",))),
    ("botnet26t_256", 64, {"img_size": 64}),
    ("cait_xxs24_224", 32, {**SMALL_VIT, "depth": 2}),
    ("coat_tiny", 64, {"img_size": 64}),
    ("convit_tiny", 32, {**SMALL_VIT, "embed_dim": 12, "local_up_to_layer": 1}),
    ("convmixer_768_32", 64),
    ("crossvit_tiny_240", 240),
    ("cspresnet50", 64),
    ("davit_tiny", 64),
    ("deit_tiny_distilled_patch16_224", 32, SMALL_VIT),
    ("dla34", 64),
    ("dpn48b", 64),
    ("edgenext_xx_small", 64),
    ("efficientformer_l1", 224),
    (
        "eva02_tiny_patch14_224",
        28,
        {"img_size": 28, "patch_size": 14, "depth": 2},
        {},
        ("timm.models.eva.EvaAttention", ("qkv.weight",)),
    ),
    ("fastvit_t8", 64),
    ("focalnet_tiny_srf", 64),
    ("gcvit_xxtiny", 224),
    ("ghostnet_050", 64, {}, SUBCLASSES),
    ("hrnet_w18_small", 64),
    ("inception_next_tiny", 64),
    ("levit_128s", 224),
    ("lcnet_035", 64, {}, SUBCLASSES),
    ("mixer_s32_224", 64, {"img_size": 64}),
    ("mobilevit_xxs", 64),
    ("mvitv2_tiny", 64, {"img_size": 64}),
    ("nf_regnet_b0", 64),
    ("pit_ti_224", 64, {"img_size": 64}),
    ("poolformer_s12", 64),
    ("pvt_v2_b0", 64),
    ("repvit_m0_9", 64),
    ("repvgg_a0", 64),
    ("res2net50_14w_8s", 64),
    ("resnest14d", 64),
    ("resnetv2_50", 64),
    ("rexnet_100", 64),
    ("selecsls42", 64),
    ("sequencer2d_s", 64),
    ("seresnet18", 64),
    ("skresnet18", 64),
    ("starnet_s1", 64, {}, SUBCLASSES),
    ("tf_efficientnet_b0", 64, {}, {}, ("timm.layers.Conv2dSame", ("weight",))),
    ("tnt_s_legacy_patch16_224", 64, {"img_size": 64}),
    ("tresnet_m", 64),
    ("twins_pcpvt_small", 64),
    ("visformer_tiny", 64, {"img_size": 64}),
    ("vit_tiny_patch16_224", 32, SMALL_VIT),
    ("volo_d1_224", 64, {"img_size": 64}),
    ("xception41", 64),
    ("xcit_nano_12_p16_224", 64, {"img_size": 64}),
)
REFUSED = ("nf_regnet_b0",)  # it standardises its weights, which would move the zeros of a mask
EVERYDAY = (
    *("pvt_v2_b0", "mnasnet0_5", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"),
    *("lcnet_035", "mixer_s32_224", "vit_tiny_patch16_224"),
)


@dataclass
class Row:
    """A family of models. ``refused``: by a plain convert; ``way``: round that; ``reason``: why it goes no further."""

    library: str
    name: str
    size: int
    layers: int = 0
    masked: float = 0.0
    refused: str = ""
    way: str = ""
    trains: bool = False
    hardens: bool = False
    exports: bool | None = None
    reason: str = ""


@contextmanager
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


@contextmanager
def registered(row: Row, family: Family) -> Iterator[None]:
    """Inside the context a masked module stands for the module that reads its children's weights."""
    if family.reads is None:
        yield
        return
    path, weights = family.reads
    module, _, name = path.rpartition(".")
    dense = getattr(importlib.import_module(module), name)
    before = dict(registry._MASKED)
    sp.nn.register(dense, type(f"Masked{name}", (sp.nn.MaskedModule, dense), {"dense_type": dense, "weights": weights}))
    row.way = f"with `MaskedModule` registered for `{path}`, weights `{weights!r}`"
    if any("." in weight for weight in weights):
        row.way += "; it reads these weights of its children itself, past their masks, and convert warns of it"
    try:
        yield
    finally:
        registry._MASKED.clear()
        registry._MASKED.update(before)


def run(family: Family) -> Row:
    """Convert, train for a step, harden and export one model; an error of a stage ends the row and is its reason."""
    row = Row(family.library, family.name, family.size)
    with _own_randomness(), registered(row, family):
        model = family.build()
        try:
            _convert(row, model, family.way)
            _train(row, model)
            _harden(row, model)
            if family.name in EVERYDAY:
                _export(row, model)
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            row.reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return row


def _convert(row: Row, model: nn.Module, way: dict[str, Any]) -> None:
    total = sum(p.numel() for p in model.parameters())
    try:
        sp.convert(model, keep_kept=0.9)
    except ValueError as error:
        if not way:
            raise
        options = ", ".join(f"`{name}={value!r}`" for name, value in way.items())
        row.refused, row.way = str(error), f"with {options}"
        sp.convert(model, keep_kept=0.9, **way)
    layers = sp.nn.masked_layers(model)
    row.layers = len(layers)
    row.masked = sum(weight.numel() for weight in {layer.weight for layer in layers.values()}) / total


def images(row: Row) -> Tensor:
    return torch.randn(2, 3, row.size, row.size)


def _train(row: Row, model: nn.Module) -> None:
    layers = sp.nn.masked_layers(model.train())
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    y = model(images(row))
    F.cross_entropy(y[0] if isinstance(y, tuple) else y, torch.tensor([0, 1])).backward()
    for name, layer in layers.items():
        for kind, tensor in (("weight", layer.weight), ("logits", layer.mask_logits)):
            if tensor.grad is None or not tensor.grad.isfinite().all():
                raise RuntimeError(f"{name}: {kind} without a finite gradient")
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    optimiser.step()
    if not any((before[name] != layer.weight).any() for name, layer in layers.items()):
        raise RuntimeError("the step changed no weight")
    row.trains = True


def _harden(row: Row, model: nn.Module) -> None:
    names, total = list(sp.nn.masked_layers(model)), sum(m.weight.numel() for m in sp.nn.masked_layers(model).values())
    sp.harden(model, 0.5, "layer")
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in names)
    if sp.nn.masked_layers(model) or not 0.45 * total < zeros < 0.55 * total:
        raise RuntimeError(f"{zeros} of {total} weights are 0 after harden(0.5)")
    row.hardens = True


def _export(row: Row, model: nn.Module) -> None:
    row.exports = False
    x = images(row)
    with torch.no_grad():
        expected = model.eval()(x)
        program = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(program(x), expected, rtol=1e-3, atol=1e-4)
    row.exports = True


INTRODUCTION = """# Models of torchvision and timm

{works} of {count} families convert, train for one step and harden. `python -m tests.nn.families` runs them, with random
weights, on a CPU ({versions}). Each is a small model of its family, with {classes} classes, on two
images.

- *masked*: the number of masked weights (matrices and filters), and their share of all parameters;
- *trains*: the loss of one batch gives a finite gradient to every masked weight and to its logits, and a step of SGD
  changes the weights;
- *hardens*: after `sp.harden(model, 0.5, "layer")` the model has no masked layer, and half of the weights that had
  masks are exactly 0;
- *exports*: `torch.export` accepts the hardened model, and its program gives the same outputs. A dash: not tried.

What was not seen: accuracy after training, pretrained weights, GPUs.

| library | model | image | masked | trains | hardens | exports | remark |
|---|---|---|---|---|---|---|---|"""


def reasons(row: dict[str, Any]) -> str:
    if row["reason"]:
        return row["reason"]
    refused = f"; without it: {row['refused']}" if row["refused"] else ""
    return row["way"] + refused


def page(rows: list[dict[str, Any]]) -> str:
    """The table of all rows in Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    works = sum(row["trains"] and row["hardens"] for row in rows)
    lines = [INTRODUCTION.format(works=works, count=len(rows), versions=versions, classes=CLASSES)]
    mark = {True: "yes", False: "no", None: "-"}
    for row in rows:
        masked = f"{row['layers']}, {100 * row['masked']:.0f} %" if row["layers"] else "none"
        stages = [mark[row[stage]] for stage in ("trains", "hardens", "exports")]
        cells = [row["library"], row["name"], str(row["size"]), masked, *stages, reasons(row).replace("|", "\\|")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the families that are named, or all; keep the rows of the others."""
    for package in ("torchvision", "timm"):
        if not available(package):
            raise SystemExit(f"{package} is not installed: pip install torchvision timm")
    kept = {row["name"]: row for row in json.loads(DATA.read_text())} if DATA.exists() else {}
    for family in FAMILIES:
        if not sys.argv[1:] or family.name in sys.argv[1:]:
            kept[family.name] = dataclasses.asdict(run(family))
            print(kept[family.name], flush=True)
            rows = [kept[each.name] for each in FAMILIES if each.name in kept]
            DATA.write_text(json.dumps(rows, indent=1) + "\n")
            PAGE.write_text(page(rows))
            gc.collect()


if __name__ == "__main__":
    main()
