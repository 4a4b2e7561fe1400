"""How what was produced, or lies in a data set, becomes a batch."""
