"""The commands of `distill`, with what they have alike; `distill.cli` puts them together."""
