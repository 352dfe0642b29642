"""Models that leave home: the card in their folder, and the way to the Hugging Face hub."""
