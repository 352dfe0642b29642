"""Arms x seeds at equal budget, with paired statistics."""
