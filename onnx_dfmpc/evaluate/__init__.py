"""Float model against quantized model: outputs, gates, which layer broke it, latency."""
