"""The whole way once, from videos to an answering policy: the verb ``demo``."""
