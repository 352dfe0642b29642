"""Preferences for answers that no verifier can check."""
