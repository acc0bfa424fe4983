"""Attention and recurrent modules: torch's forward under the contract's masks, in every option, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.models.initialise import initialised
from stochprune.nn import batched_samples, fused_masking, masked_layers
from tests.nn.zoo import MODULES, make, numbers

E = 8
KINDS = {  # the dense module, and the arguments of its forward
    "attention": (lambda: nn.MultiheadAttention(E, 2), {}),
    "attention, batch first": (lambda: nn.MultiheadAttention(E, 2, batch_first=True), {"need_weights": False}),
    "attention, kdim and vdim": (lambda: nn.MultiheadAttention(E, 2, kdim=6, vdim=5, add_bias_kv=True), {}),
    "attention without bias": (lambda: nn.MultiheadAttention(E, 4, bias=False, add_zero_attn=True), {}),
    "attention under masks": (
        lambda: nn.MultiheadAttention(E, 2, batch_first=True),
        {
            "attn_mask": torch.ones(5, 5).triu(1).bool(),
            "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5, [False] * 5]),
            "average_attn_weights": False,
        },
    ),
    "rnn": (lambda: nn.RNN(E, 6, 2, nonlinearity="relu"), {}),
    "lstm": (lambda: nn.LSTM(E, 6, 2, batch_first=True, bidirectional=True), {}),
    "lstm with projections": (lambda: nn.LSTM(E, 6, proj_size=3, bias=False), {}),
    "gru": (lambda: nn.GRU(E, 6), {}),
    "lstm cell": (lambda: nn.LSTMCell(E, 6), {}),
    "bilinear": (lambda: nn.Bilinear(E, E, 3), {}),
}


def built(kind: str) -> tuple[nn.Module, list[Tensor], dict[str, Tensor]]:
    make, options = KINDS[kind]
    dense = initialised(make, 0)
    if isinstance(dense, nn.MultiheadAttention):
        return dense, [numbers(4, 5, size, seed=size) for size in (E, dense.kdim, dense.vdim)], options
    with torch.no_grad():
        for name, p in dense.named_parameters():
            p.copy_(numbers(*p.shape, seed=len(name)) / 2)  # biases too
    if isinstance(dense, nn.Bilinear):
        return dense, [numbers(4, E), numbers(4, E, seed=1)], options
    if isinstance(dense, nn.LSTMCell):
        return dense, [numbers(4, E), (numbers(4, 6, seed=2), numbers(4, 6, seed=3))], options
    return dense, [numbers(4, 5, E)], options


def flat(result) -> list[Tensor]:
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in flat(part)]
    return [] if result is None else [result]


def close(one, other) -> None:
    torch.testing.assert_close(flat(one), flat(other))


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_is_the_dense_one_under_the_contract_s_masks(kind):
    dense, x, options = built(kind)
    model = sp.convert(nn.ModuleDict({"block": copy.deepcopy(dense)}), keep_kept=0.7, seed=5)
    layers = masked_layers(model)
    weights = {f"block.{name}" for name, p in dense.named_parameters() if p.dim() > 1 and "bias" not in name}
    assert set(layers) == weights
    for draw in range(2):
        masks = {
            name: sp.keep_mask(
                sp.rng.threshold_from_logits(layer.mask_logits.detach().flatten(1)),
                seed=5,
                draw=draw,
                stream=sp.rng.stream(name),
            ).view(layer.weight.shape)
            for name, layer in layers.items()
        }
        by_hand = copy.deepcopy(dense)
        sp.masks.apply(by_hand, {name.removeprefix("block."): mask for name, mask in masks.items()})
        y = model["block"](*x, **options)
        close(y, by_hand(*x, **options))
    sum(part.sum() for part in flat(y)).backward()
    for name, layer in layers.items():
        assert layer.weight.grad.any() and layer.mask_logits.grad.any()
        assert not layer.weight.grad[~masks[name]].any()  # a pruned weight gets no gradient
    assert all(isinstance(layer.weight, nn.Parameter) for layer in layers.values())  # the module's own again


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    dense, x, options = built(kind)
    expected, keys = dense.eval()(*x, **options), set(dense.state_dict())
    state = {name: value.clone() for name, value in dense.state_dict().items()}
    model = sp.convert(dense)
    assert isinstance(model, type(dense)) and keys <= set(model.state_dict())
    close(model(*x, **options), expected)
    for p in model.parameters():
        nn.init.zeros_(p)
    assert not model.load_state_dict(state).missing_keys  # a dense checkpoint
    close(model(*x, **options), expected)
    for name, layer in masked_layers(model).items():
        layer.mask_logits.detach().copy_(numbers(*layer.weight.shape, seed=len(name)))
    evaluated = [model(*x, **options)]
    with torch.no_grad():  # where attention has a fast path
        evaluated.append(model(*x, **options))
    gates = {name: layer.gate() for name, layer in masked_layers(model).items()}
    hard = sp.harden(model)
    assert type(hard) is type(dense) and set(hard.state_dict()) == keys
    for name, gate in gates.items():
        assert torch.equal(hard.get_parameter(name) != 0, gate & (state[name] != 0))
    for y in evaluated:
        close(hard(*x, **options), y)
        close(copy.deepcopy(hard)(*x, **options), y)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_fused_masking_gives_the_same_and_batched_samples_refuses(name):
    module, x = make(name)
    other = copy.deepcopy(module)
    with fused_masking(module):
        y = module(x)
    expected = other(x)
    close(y, expected)
    for one in (y, expected):
        one.sin().sum().backward()
    for (key, p), q in zip(module.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=key)
    with (
        pytest.raises(ValueError, match=rf"batched_samples: {next(iter(masked_layers(module)))} "),
        batched_samples(module, 2),
    ):
        pass
    with batched_samples(module, 1):
        module(x)


def test_a_packed_sequence_and_a_state():
    lstm = initialised(lambda: nn.LSTM(E, 6), 0)
    lengths = torch.tensor([5, 3, 2])
    packed = nn.utils.rnn.pack_padded_sequence(numbers(5, 3, E), lengths)
    state = numbers(1, 3, 6), numbers(1, 3, 6, seed=1)
    expected = lstm(packed, state)
    y = sp.convert(lstm, exclude="*_hh_*").eval()(packed, state)
    close(y[0].data, expected[0].data)
    close(y[1], expected[1])


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoders_leave_the_fast_path_under_masks_and_take_it_again(norm_first):
    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            E, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    model = initialised(build, 0).eval()
    sp.convert(model, keep_kept=0.7)
    assert len(masked_layers(model)) == 2 * 4
    for name, layer in masked_layers(model).items():
        layer.mask_logits.detach().copy_(numbers(*layer.weight.shape, seed=len(name)))
    x, padding = numbers(3, 5, E), torch.arange(5) >= torch.tensor([[5], [3], [4]])
    with torch.no_grad():
        y = model(x, src_key_padding_mask=padding)
        hard = sp.harden(copy.deepcopy(model))
        assert all(layer.activation_relu_or_gelu == 2 for layer in hard.layers)
        valid = ~padding
        close(y[valid], hard.train()(x, src_key_padding_mask=padding)[valid])  # in training there is no fast path
        close(y[valid], hard.eval()(x, src_key_padding_mask=padding)[valid])
    assert model.train()(x).requires_grad


def test_one_weight_of_a_module_alone():
    model = nn.Sequential(initialised(lambda: nn.LSTM(E, 6), 0))
    sp.convert(model, include="*weight_hh*")
    assert list(masked_layers(model)) == ["0.weight_hh_l0"]
    with pytest.raises(ValueError, match=r"include 'x\.weight' .*weight_hh_l0"):
        sp.convert(nn.Sequential(initialised(lambda: nn.LSTM(E, 6), 0)), include="x.weight")


def test_scores_and_masks_by_the_names_of_the_weights():
    model = nn.Sequential(initialised(lambda: nn.Linear(E, E), 0), initialised(lambda: nn.GRU(E, 4), 0))
    scores = sp.scores.magnitude(model, None, None)
    assert list(scores) == ["0.weight", "1.weight_ih_l0", "1.weight_hh_l0"]
    masks = sp.masks.from_scores(scores, 0.5)
    sp.convert(model, masks)
    sp.harden(model)
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)


def test_tied_weights_share_one_mask():
    rnn, other = (initialised(lambda: nn.RNN(E, E), 0) for _ in range(2))
    other.weight_ih_l0 = rnn.weight_ih_l0
    model = sp.convert(nn.ModuleDict({"one": rnn, "two": other}))
    layers = masked_layers(model)
    assert layers["one.weight_ih_l0"].mask_logits is layers["two.weight_ih_l0"].mask_logits
    hard = sp.harden(model, 0.5)
    assert hard["one"].weight_ih_l0 is hard["two"].weight_ih_l0 and hard["two"](numbers(2, 3, E))[0].isfinite().all()


def test_modules_are_made_from_dense_ones():
    with pytest.raises(TypeError, match=r"MaskedLSTM .*from_dense"):
        sp.nn.MaskedLSTM(8, 6)
    with pytest.raises(TypeError, match=r"weight_hh_l0 .*module"):
        sp.convert(initialised(lambda: nn.LSTM(E, 6), 0)).weight_masks["weight_hh_l0"].to_dense()


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Module()
        self.a.register_parameter("up", nn.Parameter(torch.ones(2, 2)))
        self.a_up = nn.Parameter(torch.ones(2, 2))
        self.gain = nn.Parameter(torch.ones(2))


class MaskedParts(sp.nn.MaskedModule, Parts):
    dense_type = Parts


@pytest.mark.parametrize("names, what", [(("a.up", "a_up"), r"a_up.*weight_masks\.a_up"), (("gain",), r"gain.*\(2,\)")])
def test_weights_that_cannot_have_a_mask_are_refused_at_once(names, what):
    with pytest.raises(ValueError, match=what):
        MaskedParts.from_dense(Parts(), names=names)
