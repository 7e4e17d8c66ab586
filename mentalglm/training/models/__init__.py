"""What is trained and what it learns from: language models by LoRA or whole, encoders; records as token ids."""
