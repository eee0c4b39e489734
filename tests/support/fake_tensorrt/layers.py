"""What the stand-in makes of a model: its kernels, what they cost, and what the inspector says of them."""

import json

COST_MS = 0.01


def kernels(model):
    """(name, ONNX nodes, whether it computes on integers, input, output) of each kernel: a layer takes the ReLU behind
    it and the Q behind that, if it computes on integers; a DQ is part of what reads it.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in model.graph.initializer}
    done = set()
    for node in model.graph.node:
        if (
            id(node) in done
            or node.op_type == "DequantizeLinear"
            or (node.input[:1] and node.input[0] in constants)
        ):
            continue
        sources = [makers.get(name) for name in node.input[:2]]
        is_layer = node.op_type in ("Conv", "Gemm", "MatMul")
        int8 = is_layer and all(one is not None and one.op_type == "DequantizeLinear" for one in sources)
        nodes = [node]
        while is_layer:
            behind = readers.get(nodes[-1].output[0], [])
            if len(behind) != 1 or behind[0].op_type not in (
                ("Relu", "QuantizeLinear") if int8 else ("Relu",)
            ):
                break
            nodes.append(behind[0])
        done.update(map(id, nodes))
        source = sources[0].input[0] if int8 else node.input[0] if node.input else ""
        yield " + ".join(one.name for one in nodes), nodes, int8, source, nodes[-1].output[0]


def costs(model, table):
    return {
        name: sum(
            table.get(f"{one.name}{'|int8' if int8 else ''}", table.get(one.op_type, COST_MS))
            for one in nodes
        )
        for name, nodes, int8, _, _ in kernels(model)
    }


def information(model, detailed, major):
    """As JSON; names of layers alone without details. TensorRT 10 separates nodes by a raw control character."""
    integers = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    found = []
    for name, nodes, _, source, result in kernels(model):
        if not detailed:
            found.append(name)
            continue
        ends = [[_port(one, one in integers, major)] for one in (source, result)]
        metadata = ("\x1e" if major == 10 else "").join(f"[ONNX Layer: {node.name}]" for node in nodes)
        found.append(
            {"Name": name, "LayerType": "kernel", "Inputs": ends[0], "Outputs": ends[1], "Metadata": metadata}
        )
    text = json.dumps({"Layers": found, "Bindings" if major == 10 else "I/O Tensors": []})
    return text.replace("\\u001e", "\x1e")


def _port(name, int8, major):
    kind = "Int8" if int8 else "Float"
    if major == 10:
        form = f"{kind} NCHW" if int8 else f"Row major linear {kind}"
        return {"Name": name, "Dimensions": [], "Format/Datatype": form}
    return {"Name": name, "Dimensions": [], "Format": "Row major linear", "Datatype": kind}
