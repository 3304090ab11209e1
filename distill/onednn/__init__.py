"""Training on a CPU with the oneDNN of Paddle's wheel, which eager Paddle never calls."""
