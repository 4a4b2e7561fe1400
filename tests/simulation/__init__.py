"""The loop, its books and its parameter server, for real, in a world that is drawn from a seed: only the workers, the
clock and the network between them and Redis are simulated. Any schedule can be run again, and shrinks to its least."""
