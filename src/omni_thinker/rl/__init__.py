"""One RL step: advantages, losses, batches, the loop."""
