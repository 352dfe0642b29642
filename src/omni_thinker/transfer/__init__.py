"""What training on one task does to the others, and the plan made from it."""
