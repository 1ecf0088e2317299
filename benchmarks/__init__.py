"""unetrt.benchmarks: unetrt against what people do today, same weights, same frame, checked before it is timed."""
