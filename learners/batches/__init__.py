"""From what was produced to tensors, and from a batch to minibatches."""
