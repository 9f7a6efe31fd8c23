"""From a results file to docs/benchmarks.md and its plots."""
