"""What the members of a run say to each other, and what keeps them together. Imports no other rollcall package."""
