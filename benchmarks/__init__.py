"""Side-by-side measurements: `python -m benchmarks [names…]`; how and what is in docs/benchmarks.md."""
