"""Words: what one that is no file was meant to be (`optimize quantize model.onnx` is int8, a pass), and those of others,
made fit to print.
"""

import difflib
from collections.abc import Collection

PASS_WORDS = {
    "int8": ("quantize", "quantise", "quantization", "quant", "qdq", "ptq", "qat", "static"),
    "int4": ("int4", "weight-only", "weightonly", "gptq", "awq"),
    "float16": ("fp16", "half", "float16", "f16"),
    "codebook": ("cluster", "clustering", "palettize", "palettization", "kmeans", "share", "weight-sharing"),
    "prune": ("prune", "pruning", "sparsify", "sparsity", "sparse"),
    "prune_channels": ("channels", "slim", "structured"),
    "svd": ("svd", "factorize", "decompose", "low-rank", "lowrank", "lora"),
    "tensor_train": ("tensor-train", "tt"),
    "tucker": ("tucker", "tucker-2", "tucker2", "cp", "parafac", "candecomp", "cp-decomposition"),
    "fold": ("fold", "simplify", "sim", "onnxsim", "fuse", "constant-folding", "optimize", "shrink"),
    "equalize": ("equalize", "smooth", "smoothquant", "cle"),
    "refit": ("bias-correction", "compensate", "recalibrate", "correct", "realign"),
    "winograd": ("winograd", "convolution-algorithm", "lavin", "minimal-filtering"),
    "retrain": ("retrain", "train", "finetune", "fine-tune", "distill"),
}
"""Pass -> what others call it."""
COMMAND_WORDS = {
    "inspect": ("profile", "info", "show", "summary", "stats", "layers", "macs", "flops", "view"),
    "run": ("infer", "predict", "execute", "benchmark", "bench", "time", "test", "inference"),
    "pack": ("compress", "zip", "gzip", "archive"),
    "unpack": ("decompress", "unzip", "extract", "restore"),
    "search": ("tune", "autotune", "hpo", "sweep", "optuna", "grid"),
    "sensitivity": ("sensitive", "sensitivities", "importance"),
    "auto": ("automatic", "autopilot", "easy"),
    "gate": ("compare", "eval", "evaluate", "judge", "accuracy", "verify"),
    "diff": ("difference", "side-by-side", "deviation"),
    "debug": ("bisect", "culprit", "blame", "why", "reduce"),
    "check": ("validate", "lint", "support"),
    "report": ("html", "dashboard", "visualize", "plot"),
    "build": ("compile", "export", "convert", "deploy", "engine"),
    "passes": ("list", "pass"),
    "targets": ("target", "backends", "devices"),
    "recipes": ("recipe", "presets", "templates"),
    "init": ("new", "start", "setup", "wizard", "quickstart", "propose", "auto-config"),
    "simulate": ("simulation", "scale", "scaling", "cluster-size"),
    "completion": ("complete", "completions", "autocomplete"),
}
"""Command -> what others call it."""
FORM = {
    "gate": "gate BASE CANDIDATE --gate G",
    "check": "check MODEL --target T",
    "diff": "diff A B --data D",
    "debug": "debug A B --data D --out DIR",
    "build": "build MODEL --target T",
    "report": "report BUILD_FOLDER",
    "search": "search MODEL --passes P --gate G --data D",
    "sensitivity": "sensitivity MODEL --pass P --data D",
    "auto": "auto MODEL --target T --gate G --data D",
    "simulate": "simulate MODEL --parallel P --machines N",
    "completion": "completion bash",
}


def meant(word: str, commands: Collection[str]) -> str:
    """ "; did you mean the pass int8: optimize MODEL --passes int8", or the nearest command or pass, or nothing."""
    low = word.lower().replace("_", "-")
    for table, say in ((PASS_WORDS, _pass), (COMMAND_WORDS, _command)):
        for name, others in table.items():
            if low in (name.replace("_", "-"), *others):
                return say(name)
    known = {command: f"; did you mean '{command}'?" for command in commands}
    for table, say in ((PASS_WORDS, _pass), (COMMAND_WORDS, _command)):
        for name, others in table.items():
            known = {other: say(name) for other in (name, *others)} | known
    close = difflib.get_close_matches(low, known, n=1, cutoff=0.5)
    return known[close[0]] if close else "; see: optimize --help"


def _pass(name: str) -> str:
    return f"; did you mean the pass {name}: optimize MODEL --passes {name}"


def _command(name: str) -> str:
    return f"; did you mean the command: optimize {FORM.get(name, name + ' MODEL' if name not in ('passes', 'targets', 'recipes') else name)}"
