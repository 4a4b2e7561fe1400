"""What recipes of each kind of run have, one kind a file: its settings, and which of these contradict each other."""
