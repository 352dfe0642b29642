"""What the hierarchical forecaster takes for granted: set by hand, or learned from an atlas."""
