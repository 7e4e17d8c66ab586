"""A page about score runs: what was found, how good it is, what it took, where it comes from. No Ray, no model."""
