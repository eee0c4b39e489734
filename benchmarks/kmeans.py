"""The k-means of the codebook pass against scikit-learn's: 16 clusters, one run from the same linear start,
at most 300 iterations.

    python benchmarks/kmeans.py [--rounds N]

Both run in turn, N rounds; the ratio is that of the median times. scikit-learn stops earlier at its default
tolerance. Errors are sums of squared differences between the weights and their float32 centroids, in
float64. Floor: at least 30 times faster, at equal or lower error.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from sklearn.cluster import KMeans

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.passes.numerics.clustering.kmeans import kmeans_1d, signal_and_noise

CLUSTERS = 16
ITERATIONS = 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    tensors = {
        "1,000,000 normal weights": generator.standard_normal(1_000_000, dtype=np.float32) * np.float32(0.05),
        "LeNet-5's largest layer, 400,000": largest_weight(ROOT / "models" / "lenet5-mnist" / "model.onnx"),
    }
    print("| weights | scikit-learn | Lathe | faster | error, scikit-learn | error, Lathe |")
    print("|---|---|---|---|---|---|")
    for name, weights in tensors.items():
        ours, theirs = compare(
            lambda weights=weights: lathe(weights),
            lambda weights=weights: scikit_learn(weights),
            options.rounds,
        )
        errors = [signal_and_noise(weights, *outcome)[1] for outcome in (theirs[1], ours[1])]
        times = f"{1e3 * theirs[0]:,.0f} ms | {1e3 * ours[0]:.1f} ms | {theirs[0] / ours[0]:.0f} x"
        print(f"| {name} | {times} | {errors[0]:.6g} | {errors[1]:.6g} |")


Clusters = tuple[np.ndarray, np.ndarray]


def compare(
    first: Callable[[], Clusters], second: Callable[[], Clusters], rounds: int
) -> list[tuple[float, Clusters]]:
    """Median seconds and outcome of each, run in turn."""
    times: list[list[float]] = [[], []]
    outcomes = [first(), second()]  # warm up
    for _ in range(rounds):
        for seconds, run in zip(times, (first, second), strict=True):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return [(float(np.median(seconds)), outcome) for seconds, outcome in zip(times, outcomes, strict=True)]


def lathe(weights: np.ndarray) -> Clusters:
    return kmeans_1d(weights, CLUSTERS, iterations=ITERATIONS)


def scikit_learn(weights: np.ndarray) -> Clusters:
    start = np.linspace(weights.min(), weights.max(), CLUSTERS, dtype=np.float32).reshape(-1, 1)
    model = KMeans(CLUSTERS, init=start, n_init=1, max_iter=ITERATIONS, algorithm="lloyd").fit(
        weights.reshape(-1, 1)
    )
    return model.cluster_centers_[:, 0].astype(np.float32), model.labels_.reshape(weights.shape)


def largest_weight(path: Path) -> np.ndarray:
    model = onnx.load(path)
    return max(
        (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer),
        key=lambda array: array.size,
    )


if __name__ == "__main__":
    main()
