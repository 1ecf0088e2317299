"""unetrt.benchmarks: unetrt and other implementations on the same weights and frame, checked before timing."""
