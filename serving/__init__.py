"""What answers: prediction from a pushed version."""
