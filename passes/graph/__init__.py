"""Queries and edits on onnx-graphsurgeon graphs."""

import onnx_graphsurgeon as gs

Graph = gs.Graph
Node = gs.Node
Tensor = gs.Tensor
Constant = gs.Constant
Variable = gs.Variable
