"""Paired comparisons of arms, on anybody's scores by problem."""
