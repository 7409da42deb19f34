"""Speed and memory, ours beside the peers in one run: `python -m benchmarks all --out results/benchmarks`."""
