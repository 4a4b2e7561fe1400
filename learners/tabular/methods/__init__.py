"""Control with a table of action values: one file per method, which a recipe names."""
