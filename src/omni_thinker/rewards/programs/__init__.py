"""Programs: which part of a response is the program, and what tests say about it in the sandbox."""
