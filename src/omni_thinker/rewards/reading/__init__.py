"""Reading an answer: from characters and LaTeX to numbers, times, letters of options. Exact, never raising."""
