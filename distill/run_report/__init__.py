"""The page that shows a finished or running training: curves, answers, environment and recipe of one or more runs."""
