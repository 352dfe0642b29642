"""How one model computes: packing, attention, log-probs, gradients, optimiser. It knows no tasks."""
