"""What `rollcall bench` measures: each part alone, the bound that follows, the whole system, a peer."""
