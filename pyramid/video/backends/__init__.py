"""The decoders behind one interface, and which of them reads a video."""
