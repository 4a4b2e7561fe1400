"""Commands beside training: benchmarks, manifests, monitoring, services of their own."""
