"""The mathematics, the networks, one file per algorithm, and the algorithm-blind learner. Knows nothing of actors."""
