"""A model proves itself: which ways of sampling and training are the model's own forward pass, tried before step 0."""
