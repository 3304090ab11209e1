"""Mines a pool of unlabelled images: from millions of candidates to the list that a student trains on."""
