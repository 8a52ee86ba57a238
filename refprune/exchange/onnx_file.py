"""ONNX: a trained network as a graph of standard operators in float32, batch axis free; ONNX Runtime as the check."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ..arrays import Array, Padding
from ..errors import InputError
from ..output.files import write_atomically
from ..spec.layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Section,
    SubsamplePad,
)
from .trained import Trained

OPSET, IR_VERSION = 20, 9


class _Graph:
    """Nodes and constants as they come; every method appends what turns the value `x` into the one whose name it returns."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def parameter(self, name: str) -> str:
        return self.constant(name, (self.trained.params | self.trained.statistics)[name])

    def chain(self, layers: tuple[Layer, ...], x: str) -> str:
        for layer in layers:
            x = self.section(layer, x) if isinstance(layer, Section) else self.plain(layer, x)
        return x

    def section(self, section: Section, x: str) -> str:
        shortcut, path = self.chain(section.shortcut, x), self.chain(section.path, x)
        if section.channels is not None:
            path = self.spread(section, path)
        y = self.node("Add", [shortcut, path], section.name)
        return self.node("Relu", [y], f"{section.name}.post") if section.post == "relu" else y

    def spread(self, section: Section, path: str) -> str:
        """The path's channels at their places in the stream; zeros, a channel appended to the path, elsewhere."""
        channels = section.channels or ()
        stream = section.output_shape(self.trained.network.input_shapes[section.name])
        ends = np.zeros(2 * len(stream) + 2)
        ends[len(stream) + 2] = 1
        padded = self.node("Pad", [path, self.constant(f"{section.name}.pads", ends, np.int64)], f"{section.name}.padded")
        place = {channel: i for i, channel in enumerate(channels)}
        index = self.constant(f"{section.name}.index", [place.get(c, len(channels)) for c in range(stream[0])], np.int64)
        return self.node("Gather", [padded, index], f"{section.name}.spread", axis=1)

    def plain(self, layer: Layer, x: str) -> str:
        name = layer.name
        arrays = [self.parameter(f"{name}.{key}") for key in layer.parameter_keys()]
        match layer:
            case Dense():
                return self.node("Gemm", [x, *arrays], name, transB=1)
            case Conv():
                where = {"strides": layer.stride, "dilations": layer.dilation, "pads": _pads(layer.padding)}
                return self.node("Conv", [x, *arrays], name, group=layer.groups, kernel_shape=layer.kernel, **where)
            case BatchNorm():
                arrays += [self.parameter(f"{name}.{key}") for key in ("mean", "variance")]
                return self.node("BatchNormalization", [x, *arrays], name, epsilon=layer.eps)
            case Activation():
                return self.activation(layer, x)
            case MaxPool() | AveragePool():
                where = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": _pads(layer.padding)}
                if isinstance(layer, MaxPool):
                    return self.node("MaxPool", [x], name, **where)
                return self.node("AveragePool", [x], name, count_include_pad=int(layer.count_padding), **where)
            case GlobalAveragePool():
                return self.node("Flatten", [self.node("GlobalAveragePool", [x], f"{name}.image")], name)
            case Flatten():
                return self.node("Flatten", [x], name)
            case SubsamplePad():
                steps = [("starts", (0, 0)), ("ends", (2**31, 2**31)), ("axes", (2, 3)), ("steps", layer.stride)]
                index = [self.constant(f"{name}.{key}", value, np.int64) for key, value in steps]
                picked = self.node("Slice", [x, *index], f"{name}.picked")
                pads = self.constant(f"{name}.pads", [0, layer.before, 0, 0, 0, layer.after, 0, 0], np.int64)
                return self.node("Pad", [picked, pads], name)
        raise InputError(f"{name}: {type(layer).__name__} has no counterpart in ONNX here")

    def activation(self, layer: Activation, x: str) -> str:
        kinds: dict[str, tuple[str, dict[str, Any]]] = {
            "identity": ("Identity", {}),
            "relu": ("Relu", {}),
            "leaky_relu": ("LeakyRelu", {"alpha": layer.slope}),
            "tanh": ("Tanh", {}),
            "sigmoid": ("Sigmoid", {}),
            "gelu": ("Gelu", {"approximate": "none"}),
            "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
        }
        kind, attributes = kinds[layer.kind]
        return self.node(kind, [x], layer.name, **attributes)


def _pads(padding: Padding) -> list[int]:
    """All beginnings, then all ends, as ONNX wants them."""
    return [*(before for before, _ in padding), *(after for _, after in padding)]


def write(path: Path, trained: Trained) -> None:
    """The network as an ONNX model: input "x" (N, …), output "logits" (N, classes), both float32.

    How pixels become x stands in the model's metadata as JSON, under "inputs": lists shift and scale.
    """
    graph = _Graph(trained)
    network = trained.network
    for layer in network.input_shapes:
        if layer in ("x", "logits"):
            raise InputError(f"{layer}: is what the model's input or output is called; give the layer another name")
    end = graph.chain(network.layers, "x")
    graph.node("Identity", [end], "logits")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *network.input_shape])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", *network.output_shape])]
    made = helper.make_graph(graph.nodes, "refprune", inputs, outputs, graph.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    if network.inputs is not None:
        helper.set_model_props(model, {"inputs": json.dumps(dataclasses.asdict(network.inputs))})
    onnx.checker.check_model(model, full_check=True)
    write_atomically(path, model.SerializeToString())


def outputs(path: Path, x: Array) -> Array:
    """Logits by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": x.astype(np.float32)})
    return np.asarray(logits)
