"""Programs that the Pythons of peers run, each in its own environment; nothing of Rollcall imports them."""
