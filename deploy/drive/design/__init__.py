"""The search for a reward that a language model writes: what the model is told, its answers, their training."""
