"""Who generates text: the actor that owns an engine's loop, conversations, evaluation."""
