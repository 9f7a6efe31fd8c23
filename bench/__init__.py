"""What proves the speed: benchmarks through the public API, on real processes."""
