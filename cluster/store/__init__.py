"""A run's Redis: a server started or found, a connection that outlives outages, and the lock that keeps others out."""
