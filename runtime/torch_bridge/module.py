"""The module: an ONNX graph whose float weights are `torch.nn.Parameter`s."""

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
import torch
from torch import nn

from onnx_lathe.errors import ModelError, PassError
from onnx_lathe.metadata import SPARSE, read_sparse
from onnx_lathe.runtime.torch_bridge.arrays import HALVES, to_numpy, to_torch, torch_type
from onnx_lathe.runtime.torch_bridge.calls import one_by_one, piecewise
from onnx_lathe.runtime.torch_bridge.operators.batch_norm import Observed
from onnx_lathe.runtime.torch_bridge.parameters import statistics, trainable
from onnx_lathe.runtime.torch_bridge.plan import NOTHING, Plan, inlined, make_plan, raise_refused
from onnx_lathe.runtime.torch_bridge.scales import LearnedScale, Scales, learnable
from onnx_lathe.runtime.torch_bridge.segments import Segments, run_step
from onnx_lathe.runtime.torch_bridge.stand_ins import StandIn, StraightThrough
from onnx_lathe.runtime.torch_bridge.tiling import use_tiles
from onnx_lathe.tiles import Tiles

_OBSERVED = ("statistics of the batch",)  # key of the slot where batch normalization puts them


class _Weight(NamedTuple):
    """An initializer that changes: the attribute that holds its value, the slot that it is read from, and
    its type in the file.
    """

    attribute: str
    slot: int
    dtype: np.dtype
    half: torch.dtype | None


class GraphModule(nn.Module):
    """Runs the graph's own nodes as ONNX defines them for inference: dropout is off, batch normalization
    uses its stored statistics.

    model: ModelProto with all data loaded, opset 11 to 24. Called with one tensor per graph input, by
    position or name; returns one tensor, or a tuple in the order of the graph's outputs. Initializers that
    `parameters.py` lists are Parameters, one per initializer however often it is used; half-precision ones
    are trained in float32 and rounded where the graph reads them. Zeros of a tensor that `lathe.sparse`
    names, whatever its pattern, stay zero under any optimizer, whether it is an initializer or decoded from
    one.

    learn_scales: the scales that `scales.py` lists are trained, too. train_normalization: while the module
    is in training mode, batch normalization uses the statistics of the batch, and keeps its running ones up
    to date. It stays frozen in a node whose mean and variance are not initializers of its own, for a batch
    that has one value per channel only, and for one that is run in pieces.

    freeze: ONNX Runtime computes nodes without PyTorch counterpart, without a gradient, and what lies before
    them is not trained (frozen.py).

    Raises ModelError naming all nodes without PyTorch counterpart, or a `lathe.sparse` entry that names no
    weight.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        learn_scales: bool = False,
        train_normalization: bool = False,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        model = inlined(model)
        graph = model.graph
        optional = {value.name for value in graph.input} if model.ir_version >= 4 else set()
        wanted = trainable(graph) - optional  # of an optional input, a caller may feed another value
        scales = learnable(graph) if learn_scales else Scales()
        running = statistics(graph) if train_normalization else {}
        kept = {name for pair in running.values() for name in pair}
        plan = make_plan(model, wanted | scales.steps | scales.factors | kept, freeze)
        raise_refused(plan.refused)
        initializers = {tensor.name for tensor in graph.initializer}
        producers = {name: node for node in graph.node for name in node.output}
        self.inputs = tuple(value.name for value in graph.input if value.name not in initializers)
        self.outputs = tuple(value.name for value in graph.output)
        self.output_ops = tuple(_source(name, producers) for name in self.outputs)
        """Operator that computes each output, "" if none does: tells logits from probabilities."""
        self.fixed_batch: int | None = None
        """If set, more or fewer samples than these are run so many at a time: for a graph whose own shapes
        hold its batch size.
        """
        self.per_call = False
        """If set, inputs are [samples, *the input's whole shape], and each sample is run by itself; see calls.py."""
        self._plan = _extended(plan, scales, running)
        self._results = tuple(
            (plan.slot(value.name), torch_type(value.type.tensor_type.elem_type)) for value in graph.output
        )
        self.checkpoint()
        self._weights: dict[str, _Weight] = {}
        self._stand_ins: dict[str, StandIn] = {}
        """By attribute of the weight."""
        self._scales: dict[str, _Weight] = {}
        self._statistics: dict[str, _Weight] = {}
        self._observed: Observed | None = None
        """What batch normalization has seen in the forward pass that runs; None: it uses what is stored."""
        self._not_numbers: dict[str, np.ndarray] = {}
        """Initializers that held NaN: arithmetic does not keep all bits of one."""
        for tensor in graph.initializer:
            if tensor.name in wanted:
                self._add_weight(tensor)
            elif tensor.name in scales.steps or tensor.name in scales.factors:
                self._add_scale(tensor, tensor.name in scales.steps)
            elif tensor.name in kept:
                self._add_statistic(tensor)
        for slot, constant in plan.constants.items():
            self.register_buffer(f"constant_{slot}", constant)
        self._hold_zeros(read_sparse(model.metadata_props))
        read = {slot for step in plan.steps for slot in step.inputs}
        for name, parameter in (self.weights() | self.scales()).items():
            # distributed training would wait for the gradient of one that nothing reads
            if plan.slot(name) not in read or name in plan.untrained:
                parameter.requires_grad_(False)

    def _add_weight(self, tensor: onnx.TensorProto) -> None:
        weight, value = self._changing(tensor, f"weight_{len(self._weights)}")
        self.register_parameter(weight.attribute, nn.Parameter(value))
        self.register_buffer(f"{weight.attribute}_keep", None)
        self._weights[tensor.name] = weight

    def _add_scale(self, tensor: onnx.TensorProto, is_step: bool) -> None:
        scale, value = self._changing(tensor, f"scale_{len(self._scales)}")
        self.add_module(scale.attribute, LearnedScale(value, scale.half or value.dtype, is_step))
        self._scales[tensor.name] = scale

    def _add_statistic(self, tensor: onnx.TensorProto) -> None:
        statistic, value = self._changing(tensor, f"statistic_{len(self._statistics)}")
        self.register_buffer(statistic.attribute, value)
        self._statistics[tensor.name] = statistic

    def _changing(self, tensor: onnx.TensorProto, attribute: str) -> tuple[_Weight, torch.Tensor]:
        """What to keep of an initializer, and its value; of a half-precision one in float32."""
        array = onnx.numpy_helper.to_array(tensor)
        value = to_torch(array)
        if value.isnan().any():
            self._not_numbers[tensor.name] = array
        half = value.dtype if value.dtype in HALVES else None
        return _Weight(
            attribute, self._plan.slot(tensor.name), array.dtype, half
        ), value.float() if half else value

    def weights(self) -> dict[str, nn.Parameter]:
        """Initializer name -> its Parameter, scales left out."""
        return {name: self.get_parameter(weight.attribute) for name, weight in self._weights.items()}

    def scales(self) -> dict[str, nn.Parameter]:
        """Name of a learned scale -> its Parameter: by which share the scale has changed since the module
        was made.
        """
        return {name: self.get_parameter(f"{scale.attribute}.change") for name, scale in self._scales.items()}

    def values(self) -> dict[str, np.ndarray]:
        """Initializer name -> its value now, in the initializer's own dtype and shape; without training,
        bit for bit what it was.
        """
        values = {
            name: to_numpy(self._read(changing), changing.dtype) for name, changing in self._all().items()
        }
        for name, weight in self._weights.items():
            if weight.attribute in self._stand_ins:
                values[name] += 0  # a negative weight times 0 is -0.0
        for name, original in self._not_numbers.items():
            with np.errstate(invalid="ignore"):
                same = np.isnan(original) & np.isnan(values[name])
            values[name][same] = original[same]
        return values

    def trained(self) -> dict[str, np.ndarray]:
        """Initializer name -> the value underneath that an optimizer moves; read-only, and on a CPU a view
        that moves with it.
        """
        arrays = {name: parameter.detach().cpu().numpy() for name, parameter in self.weights().items()}
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def impose(self, stand_ins: Mapping[str, np.ndarray]) -> None:
        """From now on the graph reads `stand_ins` in place of the weights of these names, and the other
        weights as they are.

        bool: the weight where true, 0 elsewhere; float: these values. The weight itself still gets the
        whole gradient. A read-only array given again is taken to be unchanged. Zeros that `lathe.sparse`
        holds stay. Raises PassError for what fits no weight.
        """
        imposed = {}
        for name, array in stand_ins.items():
            weight = self._weights.get(name)
            if weight is None:
                raise PassError(f"shaping names '{name}', which is no trained weight of the model")
            parameter = self.get_parameter(weight.attribute)
            if array.shape != parameter.shape or array.dtype.kind not in "bf":
                raise PassError(
                    f"shaping gives {array.dtype} {list(array.shape)} for {name}; wanted is bool or float {list(parameter.shape)}"
                )
            known = self._stand_ins.get(weight.attribute)
            if known is None or known.given is not array or array.flags.writeable:
                tensor = torch.empty_like(parameter, requires_grad=False).copy_(to_torch(array))
                known = StandIn(array, tensor, array.dtype == bool)
            imposed[weight.attribute] = known
        self._stand_ins = imposed

    def imposed(self) -> dict[str, np.ndarray]:
        """What `impose` was given last, by name."""
        names = {weight.attribute: name for name, weight in self._weights.items()}
        return {names[attribute]: stand_in.given for attribute, stand_in in self._stand_ins.items()}

    def checkpoint(self, cuts: Collection[int] = (), offload: bool = False) -> None:
        """From now on training keeps less in memory and computes it again, between `cuts` of the graph's
        steps; see segments.Segments.
        """
        self.segments = Segments(self._plan, [slot for slot, _ in self._results], cuts, offload)

    def tile(self, transforms: Mapping[str, Tiles]) -> None:
        """From now on a Conv whose `lathe.conv_algorithm` is among these names is computed by that transform
        in float16, and others as they are. Raises ModelError naming a node where that cannot be.
        """
        use_tiles(self._plan.steps, transforms)

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        feeds = self._feeds(inputs, named)
        if self.per_call:
            results = one_by_one(self._compute, feeds)
        elif self.fixed_batch is not None:
            results = piecewise(self._compute, feeds, self.fixed_batch)
        else:
            results = self._observing(feeds)
        return results[0] if len(results) == 1 else results

    def _observing(self, feeds: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The outputs. Running statistics are updated after them, so that a step that is computed again for
        its gradient counts once.
        """
        if not self.training or not self._statistics:
            return self._compute(feeds)
        observed: Observed = {}
        self._observed = observed
        try:
            results = self._compute(feeds)
        finally:
            self._observed = None
        with torch.no_grad():
            for name, seen in observed.items():
                statistic = self.get_buffer(self._statistics[name].attribute)
                statistic.lerp_(seen.value.to(statistic.dtype), seen.share)
        return results

    def _compute(self, feeds: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        values = self._start(feeds)
        self.segments.run(values)
        return tuple(
            values[slot] if values[slot].dtype == dtype else values[slot].to(dtype)
            for slot, dtype in self._results
        )

    def trace(self, **named: torch.Tensor) -> Iterator[tuple[onnx.NodeProto, str, torch.Tensor]]:
        """Runs node by node: (node, name of an output, its value), to look for the first that is wrong."""
        values = self._start(self._feeds((), named))
        for step in self._plan.steps:
            run_step(step, values)
            for name, slot in zip(step.node.output, step.outputs, strict=True):
                if values[slot] is not None:
                    yield step.node, name, values[slot]

    def _feeds(
        self, inputs: tuple[torch.Tensor, ...], named: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        feeds = {**dict(zip(self.inputs, inputs, strict=False)), **named}
        if (
            len(inputs) + len(named) != len(self.inputs)
            or len(feeds) != len(self.inputs)
            or not feeds.keys() <= set(self.inputs)
        ):
            given = [*(f"number {index + 1}" for index in range(len(inputs))), *named]
            raise TypeError(
                f"the model's inputs are {', '.join(self.inputs)}; given were {', '.join(given) or 'none'}"
            )
        return feeds

    @property
    def plan(self) -> Plan:
        """The graph's steps, for what runs them in another way."""
        return self._plan

    @property
    def results(self) -> tuple[tuple[int, torch.dtype], ...]:
        """Slot and declared type of each output."""
        return self._results

    def stored(self, slots: Container[int]) -> dict[int, Any]:
        """What is there before the first step, of `slots` alone: numbers, constants, and weights as the
        graph reads them.
        """
        values = {slot: number for slot, number in self._plan.numbers.items() if slot in slots}
        values |= {slot: getattr(self, f"constant_{slot}") for slot in self._plan.constants if slot in slots}
        for changing in self._all().values():
            if changing.slot in slots:
                value = self._read(changing)
                values[changing.slot] = value if changing.half is None else value.to(changing.half)
        return values

    def _start(self, feeds: Mapping[str, torch.Tensor]) -> list[Any]:
        """All slots as they are before the first step."""
        values: list[Any] = [None] * len(self._plan.slots)
        for slot, value in self.stored(range(len(values))).items():
            values[slot] = value
        if self._observed is not None:
            values[self._plan.slot(_OBSERVED)] = self._observed
            for (
                statistic
            ) in self._statistics.values():  # updated in place before the backward pass reads what was used
                values[statistic.slot] = values[statistic.slot].clone()
        for name, tensor in feeds.items():
            values[self._plan.slot(name)] = tensor
        return values

    def _all(self) -> dict[str, _Weight]:
        return {**self._weights, **self._scales, **self._statistics}

    def _read(self, weight: _Weight) -> torch.Tensor:
        value: Any = getattr(self, weight.attribute)
        if isinstance(value, LearnedScale):
            return value()
        keep: torch.Tensor | None = getattr(self, f"{weight.attribute}_keep", None)
        stand_in = self._stand_ins.get(weight.attribute)
        if keep is not None:
            value = value * keep
        if stand_in is None:
            return cast(torch.Tensor, value)
        read: torch.Tensor = StraightThrough.apply(value, stand_in)
        return read if keep is None or stand_in.is_mask else read * keep

    def _hold_zeros(self, sparse: Iterable[str]) -> None:
        """Multiply by 0, wherever it is read, every parameter element that makes a zero of a `sparse` tensor.

        The gradient of the sum over a tensor's zeros tells which elements those are: its own zeros for an
        initializer, the zero centroid for a codebook weight. The factor holds back their gradient, and
        whatever else an optimizer does to them. A parameter that makes a zero out of elements that are not
        zero is not trained.
        """
        named = [name for name in sparse if self._is_trained_constant(name)]
        if not named:
            return
        values = self._start({})
        for step in self._plan.steps:
            if step.static:
                run_step(step, values)
        tensors = [values[self._plan.slots[name]] for name in named]
        zeros = sum((tensor[tensor == 0].sum() for tensor in tensors), torch.zeros(()))
        parameters = self.weights() | self.scales()
        gradients = torch.autograd.grad(zeros, list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if gradient is None or not gradient.any():
                continue
            if parameter.detach()[gradient != 0].any():
                parameter.requires_grad_(False)
            else:
                setattr(self, f"{self._weights[name].attribute}_keep", (gradient == 0).to(parameter.dtype))

    def _is_trained_constant(self, name: str) -> bool:
        if name not in self._plan.static:
            raise ModelError(
                f"metadata {SPARSE} names '{name}', which is not a weight of this model; remove the entry"
            )
        return name in self._weights or any(
            step.static and name in step.node.output for step in self._plan.steps
        )


def _source(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    node = producers.get(name)
    while node is not None and node.op_type in ("Identity", "Cast", "Reshape", "Flatten", "Squeeze"):
        node = producers.get(node.input[0])
    return "" if node is None else str(node.op_type)


def _extended(plan: Plan, scales: Scales, running: Collection[str]) -> Plan:
    """Gives steps one input more: to Q and DQ the pace of a learned scale, to batch normalization a place
    for what it observes.
    """
    for step in plan.steps:
        output = step.node.output[0]
        if output in scales.paces:
            slot = plan.slot((output, "pace"))
            plan.numbers[slot] = scales.paces[output]
            step.inputs += (NOTHING,) * (3 - len(step.inputs)) + (slot,)
        elif output in running:
            step.inputs += (plan.slot(_OBSERVED),)
    return plan
