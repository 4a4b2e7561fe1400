"""vLLM as our generation engine: the only room that knows it."""
