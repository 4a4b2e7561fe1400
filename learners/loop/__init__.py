"""The learner process: one step over a batch, its parameters whole or in pieces, its weights handed out."""
