"""Training: examples with the loss on the answer alone, and the demo model."""
