"""Labels for clips: the Labeler protocol, the label table, the engine and its executors."""
