"""Frozen networks whose answers a student learns: of the series, of one's own, or files."""
