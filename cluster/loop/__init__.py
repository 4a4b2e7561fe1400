"""The one loop of tickets, batches and learner steps, and the pure state machines that it asks."""
