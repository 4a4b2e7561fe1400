"""The Ray cluster beneath a run: a private one or a given one, its nodes and their addresses, and who goes where."""
