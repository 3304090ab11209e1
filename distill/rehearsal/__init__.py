"""A run before the run: its checks, a few real steps, what it will need; and any recipe in small."""
