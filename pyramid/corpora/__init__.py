"""Corpora: one file per kind, each yielding clips; the clip manifest."""
