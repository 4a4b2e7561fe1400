"""Where the members of a run live: in one process, or on Ray."""
