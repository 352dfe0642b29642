"""What an update is made of: passes of one loss each, importance weights, and how far the sampler may be."""
