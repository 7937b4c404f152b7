"""Making models: the tiny base, fine-tuning, publishing."""
