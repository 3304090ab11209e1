"""What is published about the series' networks, beside what we count ourselves."""
