"""Four decoders behind one protocol."""
