"""The soft-label store: a teacher's answers, computed once and read by every later run."""
