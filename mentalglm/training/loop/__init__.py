"""The training loop on Ray Train: its workers, its steps, and which examples and learning rate each step has."""
