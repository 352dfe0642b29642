"""A policy whose weights lie at a training service with the Tinker API: sampled and trained there, by LoRA."""
