"""Speed and memory of the reference workloads: `python -m benchmarks`."""
