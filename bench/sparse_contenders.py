"""The ways to run a linear layer whose weight has zeros: each makes a forward of a dense layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import stochprune as sp

Forward = Callable[[Tensor], Tensor]
BLOCK = 16


def dense(layer: nn.Linear) -> Forward:
    """``nn.Linear`` as it is: torch multiplies the zeros too, on a CPU with MKL."""
    return layer


def compiled(layer: nn.Linear) -> Forward:
    """The same under ``torch.compile``."""
    return torch.compile(layer, dynamic=True)


def onnx_runtime(layer: nn.Linear) -> Forward:
    """The same as a graph of one product in ONNX Runtime."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    n, k = layer.weight.shape
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", n])],
        [numpy_helper.from_array(p.detach().numpy(), name) for name, p in layer.named_parameters()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take the others' cores
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def csr(layer: nn.Linear) -> Forward:
    """``weight.to_sparse_csr()``."""
    return _of_layout(layer, layer.weight.detach().to_sparse_csr())


def bsr(layer: nn.Linear) -> Forward:
    """``weight.to_sparse_bsr((16, 16))``: a block is stored if one of its weights is not 0."""
    return _of_layout(layer, layer.weight.detach().to_sparse_bsr((BLOCK, BLOCK)))


def _of_layout(layer: nn.Linear, weight: Tensor) -> Forward:
    bias = layer.bias.detach()
    return lambda x: (weight @ x.T).T + bias


def semi_structured(layer: nn.Linear) -> Forward:
    """``torch.sparse.to_sparse_semi_structured``, of 2:4 weights in half precision on a GPU."""
    if not torch.cuda.is_available():
        raise NotImplementedError("it needs a CUDA device")
    twin = nn.Sequential(nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features))
    twin.load_state_dict({f"0.{name}": p for name, p in layer.state_dict().items()})
    fast = sp.nn.semi_structured(twin.half().cuda())

    def forward(x: Tensor) -> Tensor:
        return fast(x.half().cuda()).float().cpu()

    return forward


def sparse_linear(layer: nn.Linear) -> Forward:
    """``stochprune.nn.SparseLinear``."""
    return sp.nn.SparseLinear.from_linear(layer)


CONTENDERS: dict[str, Callable[[nn.Linear], Forward]] = {
    "dense": dense,
    "torch.compile": compiled,
    "ONNX Runtime": onnx_runtime,
    "CSR": csr,
    "BSR": bsr,
    "semi-structured": semi_structured,
    "SparseLinear": sparse_linear,
}


def make(name: str, layer: nn.Linear) -> Forward | str:
    """Return the forward of a contender, or why there is none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|BSR) tensor support is in beta")
        try:
            return CONTENDERS[name](layer)
        except NotImplementedError as error:
            return str(error)
