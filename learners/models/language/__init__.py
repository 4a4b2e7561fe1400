"""Language models: a causal model taken apart, adapters beside it, its logits and its tokens."""
