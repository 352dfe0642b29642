"""The figures of a report: each takes a run and the room it has, and returns a picture, or None without data."""
