"""Killable worker processes; the only place where model output is executed."""
