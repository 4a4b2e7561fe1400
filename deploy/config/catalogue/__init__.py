"""Which settings there are, over all kinds of runs: what each means, what others call it, and the schema of all."""
