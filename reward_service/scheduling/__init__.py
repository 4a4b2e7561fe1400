"""From a request to scores: which model, what is known already, what makes one batch."""
