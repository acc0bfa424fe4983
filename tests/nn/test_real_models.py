"""Whole networks: converted, trained, saved, copied, hardened, exported."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp
from stochprune.models import gpt, resnet18, resnet20, vgg16, vit

# The positions of so small a ViT are 4 per cent of its parameters.
pytestmark = pytest.mark.filterwarnings("ignore::stochprune.nn.UnmaskedWeightsWarning")

TOKENS = (torch.arange(24) * 7 % 13).view(2, 12)
MODELS = {
    "resnet20": (lambda: resnet20(width=4, seed=0), 22),
    "resnet18": (lambda: resnet18(width=4, small_images=False, seed=0), 21),
    "vgg16": (lambda: vgg16(width=4, seed=0), 14),
    "vit": (lambda: vit(size=(16, 16), width=12, depth=2, heads=3, seed=0), 10),
    "gpt": (lambda: gpt(13, 12, width=12, depth=2, heads=3, seed=0), 10),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param][0]().eval()


@pytest.fixture
def x(model, generator):
    return TOKENS if hasattr(model, "token") else torch.randn(2, 3, 16, 16, generator=generator)


def spread(model, generator):
    """Probabilities on both sides of one half."""
    for logits in {layer.mask_logits for layer in sp.nn.masked_layers(model).values()}:
        nn.init.normal_(logits, generator=generator)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_with_a_weight_matrix_is_masked(name):
    make, count = MODELS[name]
    model = make()
    weights = [name for name, p in model.named_parameters() if p.dim() > 1 and not name.startswith("position")]
    sp.convert(model)
    layers = sp.nn.masked_layers(model)
    assert len(layers) == count and {id(layer.weight) for layer in layers.values()} == {
        id(model.get_parameter(name)) for name in weights
    }
    assert len({layer.stream for layer in layers.values()}) == len(weights)


def test_a_converted_model_evaluates_like_the_dense_one_and_trains(model, x):
    expected = model(x)
    sp.convert(model)
    torch.testing.assert_close(model(x), expected)
    first, second = model.train()(x), model(x)
    assert not torch.equal(first, second)
    F.cross_entropy(second.flatten(0, -2), torch.zeros(second[..., 0].numel(), dtype=torch.int64)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(
        layer.mask_logits.grad.any() and layer.weight.grad.any() for layer in sp.nn.masked_layers(model).values()
    )


def test_a_hardened_model_is_plain_and_evaluates_to_the_same(model, x, generator):
    kinds = [type(module) for module in model.modules()]
    spread(sp.convert(model), generator)
    expected = model(x)
    sp.harden(model)
    assert [type(module) for module in model.modules()] == kinds
    torch.testing.assert_close(model(x), expected)
    assert not any("mask" in name for name in model.state_dict())


def test_hardening_counts_tied_weights_once(generator):
    model = spread(sp.convert(gpt(40, 12, width=12, depth=1, heads=3, seed=0)), generator)
    logits = {id(layer.mask_logits): layer.mask_logits for layer in sp.nn.masked_layers(model).values()}
    total = sum(value.numel() for value in logits.values())
    sp.harden(model, 0.5)
    weights = [model.token.weight, *(p for name, p in model.blocks.named_parameters() if p.dim() > 1)]
    assert sum(int((w == 0).sum()) for w in weights) == round(0.5 * total)
    assert model.head.weight is model.token.weight


def test_state_dicts_go_round(model, x, generator):
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(x)
    sp.convert(model).load_state_dict(dense)
    torch.testing.assert_close(model(x), expected)
    spread(model, generator).train()
    model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    again = copy.deepcopy(model)
    for p in again.parameters():
        nn.init.zeros_(p)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(x), again(x))  # the same next mask


def test_copies_share_nothing_and_keep_their_ties(model, x):
    sp.convert(model).train()
    clone = copy.deepcopy(model)
    assert not {id(p) for p in clone.parameters()} & {id(p) for p in model.parameters()}
    assert len([*clone.parameters()]) == len([*model.parameters()])
    assert torch.equal(clone(x), model(x))


def test_on_the_meta_device(model, x, generator):
    with torch.device("meta"):
        empty = copy.deepcopy(model).to("meta")
    if hasattr(empty, "token"):
        empty.head.weight = empty.token.weight  # which .to() has parted
    sp.convert(empty)
    assert all(t.is_meta for t in empty.state_dict().values())
    spread(sp.convert(model), generator)
    dense_keys = {name: t for name, t in model.state_dict().items() if "mask" not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*mask_logits"):
        empty.load_state_dict(dense_keys, assign=True)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(x), model(x))
    assert repr(empty)


def test_hooks_move_with_their_layers(model, x, generator):
    seen = []
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    spread(sp.convert(model), generator)(x)
    sp.harden(model)(x)
    handle.remove()
    model(x)
    assert seen == ["MaskedLinear", "Linear"]


def test_transformer_encoder_layers_leave_their_fast_path(generator):
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model.to_empty(device="cpu").eval()
    for p in model.parameters():
        nn.init.normal_(p, generator=generator)
    sp.convert(model, exclude=nn.MultiheadAttention)
    assert len(sp.nn.masked_layers(model)) == 4
    spread(model, generator)
    x = torch.randn(2, 5, 8, generator=generator)
    with torch.no_grad():
        y = model(x)
        expected = sp.harden(copy.deepcopy(model)).train()(x)  # in training mode there is no fast path
    torch.testing.assert_close(y, expected)


def test_data_parallel_without_devices_is_the_module(model, x):
    sp.convert(model).train()
    wrapped = nn.DataParallel(copy.deepcopy(model))
    assert torch.equal(wrapped(x), model(x))


def test_replicas_of_data_parallel_draw_the_same_mask(model, x):
    sp.convert(model).train()
    replica = model._replicate_for_data_parallel()
    assert type(replica) is type(model)
    layer = next(iter(sp.nn.masked_layers(model).values()))
    other = layer._replicate_for_data_parallel()
    other.weight, other.mask_logits, other.mask_draw = layer.weight, layer.mask_logits, layer.mask_draw.clone()
    assert torch.equal(other.next_draw(), layer.next_draw())


def test_export_of_the_hardened_model(model, x, generator):
    sp.harden(spread(sp.convert(model), generator))
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    weights = [name for name, p in model.named_parameters() if p.dim() > 1 and not name.startswith("position")]
    assert all((program.state_dict[name] == 0).any() for name in weights)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=[] if name in ("resnet20", "gpt") else pytest.mark.slow) for name in MODELS],
    indirect=True,
)
def test_onnx_of_the_hardened_model(model, x, generator, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    sp.harden(spread(sp.convert(model), generator))
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-3, atol=1e-4)
