"""The pyramid: a mixture file, its exact schedule, and the stream of batches it gives."""
