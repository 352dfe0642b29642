"""The table `[engine]` of a recipe and the tables of each engine. Imports no torch."""
