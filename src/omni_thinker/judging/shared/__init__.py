"""One judge for several processes: one of them owns its limits, budget, cache and counts, and the others ask it.

All that passes between them are calls of a `Call`: a method's name and plain JSON, answered by plain JSON."""
