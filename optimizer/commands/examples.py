"""Examples that `--help` of each command ends with; a test runs every one of them."""

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "optimize": (
        ('optimize model.onnx --passes "fold, int8" --data data.npz --target ort', "INT8 for ONNX Runtime"),
        (
            'optimize model.onnx --recipe no-training-data --gate "size ratio >= 3"',
            "a built-in recipe, which needs no data, and a gate",
        ),
        (
            "optimize model.onnx --recipe recipe.toml --out build/mine --force",
            "a recipe of yours, once again",
        ),
    ),
    "optimize init": (
        ("optimize init model.onnx --data data.npz", "writes recipe.toml"),
        ("optimize init model.onnx --target pack --out small.toml", "without data, for the smallest file"),
    ),
    "optimize recipes": (
        ("optimize recipes", "lists them"),
        ("optimize recipes phone", "prints one; > mine.toml makes it yours"),
    ),
    "optimize passes": (
        ("optimize passes", "lists them"),
        ("optimize passes int8", "every option of one"),
    ),
    "optimize targets": (
        ("optimize targets", "lists them, and what is missing here"),
        ("optimize targets --json", "for scripts"),
    ),
    "optimize inspect": (
        ("optimize inspect model.onnx", "shapes, parameters, zeros, bytes and MACs of each layer"),
        ("optimize inspect model.lathe --json", "of a packed file, for scripts"),
    ),
    "optimize check": (
        ("optimize check int8.onnx --target ort", "which layers run in INT8"),
        ("optimize check model.onnx --target ncnn,tensorrt-rtx", "what two targets refuse"),
    ),
    "optimize build": (
        ("optimize build model.onnx --target ort", "writes build/targets/model.ort.onnx"),
        ('optimize build model.onnx --target "jetson(device=orin-nano-8gb)" --out bundle', "with an option"),
    ),
    "optimize gate": (
        ('optimize gate model.onnx int8.onnx --data data.npz --gate "top1 drop <= 5%"', "with labels"),
        (
            'optimize gate model.onnx int8.onnx --data data.npz --gate "sqnr >= 5" --gate "size ratio >= 2"',
            "without",
        ),
    ),
    "optimize run": (
        ("optimize run model.onnx --data data.npz", "accuracy and latency"),
        ("optimize run int8.onnx --data data.npz --against model.onnx", "beside another one, timed in turn"),
    ),
    "optimize pack": (
        ("optimize pack model.onnx", "writes model.lathe"),
        ("optimize pack model.onnx --effort fast --out fast.lathe", "some per cent larger, ten times sooner"),
    ),
    "optimize unpack": (
        ("optimize unpack model.lathe --out again.onnx", "the same file again"),
        ("optimize unpack model.lathe --limit 16 --out big.onnx", "allows up to 16 GB"),
    ),
    "optimize completion": (
        ("optimize completion bash > optimize-completion.bash", "then: source optimize-completion.bash"),
        ("optimize completion fish", "for ~/.config/fish/completions/optimize.fish"),
    ),
}
"""Name of the command's parser -> (command, what it does)."""


def shown(prog: str) -> str:
    """The examples as the help of a command shows them; empty for a parser that has none."""
    rows = [f"  {command}\n      {what}" for command, what in EXAMPLES.get(prog, ())]
    return "\n".join(["examples:", *rows]) if rows else ""
