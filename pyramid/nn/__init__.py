"""Network parts that two or more models share, and how a model is saved."""
