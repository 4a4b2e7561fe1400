"""`rollcall doctor`: what this machine has of what runs need, and what that means. Imports neither torch nor Ray."""
