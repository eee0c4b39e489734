"""Examples that `--help` of each command ends with; a test runs every one of them."""

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "optimize": (
        ('optimize model.onnx --passes "fold, int8" --data data.npz --target ort', "INT8 for ONNX Runtime"),
        (
            'optimize model.onnx --recipe no-data --gate "size ratio >= 3"',
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
        (
            "optimize inspect model.onnx --sort macs",
            "weights, activations, MACs, bytes and zeros of each layer",
        ),
        (
            "optimize inspect model.onnx --columns layer,op,macs,energy --shape image=2x3x12x12 --time",
            "columns to choose, a size that is left open, milliseconds",
        ),
        ("optimize inspect model.onnx --training --batch 32", "the memory that training holds"),
        (
            "optimize inspect model.onnx --batch 32 --parallel 4",
            "what four workers send and hold that share a training",
        ),
        ("optimize inspect model.onnx int8.onnx", "side by side"),
        ("optimize inspect model.lathe --json", "of a packed file, for scripts"),
    ),
    "optimize simulate": (
        (
            "optimize simulate model.onnx --machines 4096 --link 100Gb/s,2us --html scaling.html",
            "time per step of each strategy, as tables and curves",
        ),
        (
            "optimize simulate model.onnx --parallel data --parallel height=2 --stragglers lognormal=0.3 --json",
            "two of them, and machines that are sometimes slow",
        ),
    ),
    "optimize check": (
        ("optimize check int8.onnx --target ort", "which layers run in INT8"),
        ("optimize check model.onnx --target ncnn,tensorrt-rtx", "what two targets refuse"),
    ),
    "optimize diff": (
        (
            "optimize diff model.onnx int8.onnx --data data.npz",
            "each tensor's error, and the first layer where they part",
        ),
        ("optimize diff model.onnx int8.onnx --data data.npz --html diff.html", "as a page"),
    ),
    "optimize debug": (
        (
            "optimize debug model.onnx int8.onnx --data data.npz --out culprit",
            "the layer to blame, as a small model",
        ),
        ("optimize debug model.onnx int8.onnx --data data.npz --out other --json", "for scripts"),
    ),
    "optimize report": (
        ("optimize report made", "report.html of an earlier run, from its folder alone"),
        ("optimize report made --html page.html", "under another name"),
    ),
    "optimize sensitivity": (
        ("optimize sensitivity model.onnx --pass prune --data data.npz", "what each layer stands"),
        ("optimize sensitivity model.onnx --pass int8 --data data.npz --html sensitivity.html", "drawn"),
    ),
    "optimize search": (
        (
            'optimize search model.onnx --passes "fold, codebook" --minimize packed --gate "top1 drop <= 5%" '
            "--data data.npz --budget 10m --out found",
            "a strength for every layer",
        ),
        (
            'optimize search model.onnx --passes "fold, prune" --search "prune.sparsity=0.1..0.6" --minimize packed '
            '--gate "top1 drop <= 5%" --data data.npz --budget 10m --out other',
            "a space of your own",
        ),
    ),
    "optimize auto": (
        (
            'optimize auto model.onnx --target ort --gate "top1 drop <= 5%" --data data.npz --budget 10m --out auto',
            "searched and built",
        ),
        (
            'optimize auto model.onnx --target pack --gate "top1 drop <= 5%" --data data.npz --budget 10m --out small',
            "for the smallest file",
        ),
    ),
    "optimize build": (
        ("optimize build model.onnx --target ort", "writes build/targets/model.ort.onnx"),
        ('optimize build model.onnx --target "jetson(device=orin-nano-8gb)" --out bundle', "with an option"),
    ),
    "optimize gate": (
        ('optimize gate model.onnx int8.onnx --data data.npz --gate "top1 drop <= 5%"', "with labels"),
        (
            'optimize gate model.onnx int8.onnx --data data.npz --gate "sqnr >= 5" --gate "size ratio >= 2"',
            "without labels",
        ),
        (
            'optimize gate model.onnx int8.onnx --data data.npz --gate "top1 drop <= 50%" --confidence 95% --junit gates.xml',
            "by the worse end of an interval, for CI",
        ),
        ('optimize gate model.onnx int8.onnx --gate "size ratio >= 2" --json', "without data, for scripts"),
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
