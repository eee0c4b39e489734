"""SparseGPT as onnxsim 0.8 has it, for without_training.py, in a Python of its own: MODEL CALIBRATION.npz "(sparsity=0.5)" OUT."""

import ast
import sys

import numpy as np
import onnx
import onnxsim

model, data, asked, out = sys.argv[1:]
call = ast.parse(f"f{asked}", mode="eval").body
assert isinstance(call, ast.Call)
settings = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
archive = np.load(data)
(name,) = archive.files
batches = [{name: archive[name][start : start + 4]} for start in range(0, len(archive[name]), 4)]
onnx.save(onnxsim.apply_sparsegpt_pruning(onnx.load(model), batches, **settings), out)
