"""From a model's name to a checked folder, a tokenizer and weights."""
