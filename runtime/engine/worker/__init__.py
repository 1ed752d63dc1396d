"""What one rank does: its memory, its weights, its cache, a step of the model, the tokens drawn from it."""
