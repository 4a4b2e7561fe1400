"""The runtime with processes: what runs where on a Ray cluster, and what becomes of what dies."""
