"""Who is asked what, under a lease, and what was said: the queue, the page, the protocol."""
