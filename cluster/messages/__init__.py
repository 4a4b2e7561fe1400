"""The records that cross processes: tickets, experience, weights, and what a runtime tells the coordinator."""
