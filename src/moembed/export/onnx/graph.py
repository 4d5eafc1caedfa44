"""Writing ONNX graphs by hand: every value is a name, every operation gives the name of its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from moembed import __version__
from moembed.model.group_codes import GROUP, GroupCodes
from moembed.model.norm import NormSpec
from moembed.moe.ffn import Activation

if TYPE_CHECKING:
    import onnx

FLOAT = 1  # onnx.TensorProto.FLOAT
OPSET = 20  # the first with Gelu
IR_VERSION = 9  # the file format of that opset's time; older runtimes refuse newer ones
WEIGHT_STEPS = 63  # 7 bits: with 8, CPUs without VNNI overflow their 16-bit sums of two products
TINY = 1e-30  # least scale, for rows of zeros


class Graph:
    """Nodes and constants in the order they were asked for; ``state`` holds the tensors to draw on.

    ``bits`` are of the matrices that are groups of few bits already, and stay so; one of expert e is called
    ``NAME.e``. ``int8`` rounds all matrices.
    """

    def __init__(
        self, state: dict[str, Tensor], int8: bool = False, bits: Mapping[str, int] | None = None
    ) -> None:
        self.state, self.int8, self.bits = state, int8, bits or {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, result: str | None = None, **attributes: Any) -> str:
        """Append a node with one result, called ``result`` if the name matters."""
        return self._append(kind, inputs, [result or f"{kind}_{len(self.nodes)}"], attributes)[0]

    def ops(self, kind: str, *inputs: str, results: int, **attributes: Any) -> list[str]:
        """Append a node with several results."""
        names = [f"{kind}_{len(self.nodes)}.{i}" for i in range(results)]
        return self._append(kind, inputs, names, attributes)

    def _append(
        self, kind: str, inputs: tuple[str, ...], results: list[str], attributes: dict[str, Any]
    ) -> list[str]:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, results, f"{kind}_{len(self.nodes)}", **attributes))
        return results

    def constant(self, name: str, array: np.ndarray) -> str:
        """A constant under a name of its own; asked for again, it is the one made before."""
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector: a shape, axes."""
        return self.constant(f"ints_{'_'.join(map(str, values))}", np.array(values, dtype=np.int64))

    def scalar(self, value: int | float) -> str:
        """A constant number: int64 if it is whole by type, else fp32."""
        return self.constant(
            f"scalar_{value!r}", np.array(value, np.int64 if isinstance(value, int) else np.float32)
        )

    def parameter(self, name: str) -> str:
        """A tensor of ``state`` as it is, in fp32."""
        return self.constant(name, numpy(self.state[name]))

    def linear(self, hidden: str, name: str) -> str:
        """An ``nn.Linear`` of ``state``, with or without bias."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        return self.affine(hidden, weight, self.state[weight], bias, self.state.get(bias))

    def affine(
        self, hidden: str, name: str, weight: Tensor, bias_name: str = "", bias: Tensor | None = None
    ) -> str:
        """``x W' + b`` for W ``(out, in)``, in the bits of the graph or its own, if any."""
        if name in self.bits:
            product = self.product_of_groups(hidden, name, GroupCodes.of(weight, self.bits[name]))
        else:
            product = self.product8(hidden, name, weight) if self.int8 else self.product(hidden, name, weight)
        return product if bias is None else self.op("Add", product, self.constant(bias_name, numpy(bias)))

    def product(self, hidden: str, name: str, weight: Tensor) -> str:
        return self.op("MatMul", hidden, self.constant(name, numpy(weight).T))

    def product8(self, hidden_TX: str, name: str, weight_YX: Tensor) -> str:
        """``x W'`` as integers: ``(round(x / s) W8') * s * w`` with a scale s per token and w per output.

        A scale per token keeps a text's vector independent of its batch-mates, which onnxruntime's own
        dynamic quantisation, with one scale per batch, does not.
        """
        array_YX = numpy(weight_YX)
        scale_Y = np.maximum(np.abs(array_YX).max(axis=1) / WEIGHT_STEPS, TINY)
        weight_XY = np.round(array_YX / scale_Y[:, None]).astype(np.int8).T
        largest_T = self.op("ReduceMax", self.op("Abs", hidden_TX), self.ints(1), keepdims=0)
        scale_T = self.op("Max", self.op("Mul", largest_T, self.scalar(1 / 127)), self.scalar(TINY))
        zero = self.constant("zero_point", np.array(128, dtype=np.uint8))
        zero_T = self.op("Expand", zero, self.op("Shape", scale_T))
        hidden8_TX = self.op("QuantizeLinear", hidden_TX, scale_T, zero_T, axis=0)
        sum_TY = self.op("MatMulInteger", hidden8_TX, self.constant(name, weight_XY), zero)
        scale = self.constant(f"{name}.scale", scale_Y.astype(np.float32))
        product_TY = self.op("DequantizeLinear", sum_TY, scale, axis=1)
        return self.op("Mul", product_TY, self.op("Unsqueeze", scale_T, self.ints(1)))

    def product_of_groups(self, hidden: str, name: str, codes: GroupCodes) -> str:
        """``x W'`` by onnxruntime's MatMulNBits, whose groups, order of halves and zero are those of ours.

        Rounding what was rounded gives the same codes and steps, so they need not be handed on.
        """
        rows, columns = codes.shape
        groups = -(-columns // GROUP)
        code = self.constant(name, codes.code.view(rows, groups, -1).numpy())
        scale = self.constant(f"{name}.scale", codes.scale.float().numpy())
        return self.op(
            "MatMulNBits", hidden, code, scale,
            domain="com.microsoft", K=columns, N=rows, bits=codes.bits, block_size=GROUP,
        )  # fmt: skip

    def rows(self, name: str, index: str) -> str:
        """Rows of a table of ``state``, which stays in 8 bits where it has them."""
        if self.bits.get(name) != 8:
            return self.op("Gather", self.parameter(name), index)
        codes = GroupCodes.of(self.state[name], 8)
        count, width = codes.shape
        groups = -(-width // GROUP)
        code = self.constant(name, codes.code.view(count, groups, GROUP).numpy())
        scale = self.constant(f"{name}.scale", codes.scale.view(count, groups, 1).numpy())
        whole = self.op("Cast", self.op("Gather", code, index), to=FLOAT)
        step = self.op("Cast", self.op("Gather", scale, index), to=FLOAT)
        value = self.op("Mul", self.op("Sub", whole, self.scalar(128.0)), step)
        padded = self.op("Reshape", value, self.ints(-1, groups * GROUP))
        if width == groups * GROUP:
            return padded
        return self.op("Slice", padded, self.ints(0), self.ints(width), self.ints(1))

    def norm(self, hidden: str, name: str, spec: NormSpec) -> str:
        """The norm of the last axis, as `moembed.model.norm` computes it."""
        weight = self.state[f"{name}.weight"]
        scale = self.constant(f"{name}.weight", numpy(weight + 1 if spec.plus_one else weight))
        if spec.kind == "layer":
            bias = [self.parameter(f"{name}.bias")] if spec.bias else []
            return self.op("LayerNormalization", hidden, scale, *bias, axis=-1, epsilon=spec.eps)
        square = self.op("ReduceMean", self.op("Mul", hidden, hidden), self.ints(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", square, self.scalar(spec.eps)))
        return self.op("Mul", self.op("Div", hidden, root), scale)

    def activation(self, hidden: str, kind: Activation) -> str:
        if kind == "silu":
            return self.op("Mul", hidden, self.op("Sigmoid", hidden))
        if kind == "relu":
            return self.op("Relu", hidden)
        return self.op("Gelu", hidden, approximate="tanh" if kind == "gelu_tanh" else "none")

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The finished model; onnxruntime's own domain is declared only when a node is of it."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, "moembed", inputs, outputs, list(self.constants.values()))
        domains = sorted({node.domain for node in self.nodes})
        return helper.make_model(
            graph,
            producer_name="moembed",
            producer_version=__version__,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid(domain, 1 if domain else OPSET) for domain in domains],
        )


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu").float().numpy()
