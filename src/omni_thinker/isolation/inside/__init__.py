"""What runs inside the sandbox: scripts with the standard library alone, never imported outside it."""
