"""Continuous batching: prompts in, tokens and their log-probs out."""
