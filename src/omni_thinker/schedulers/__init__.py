"""Which task next."""
