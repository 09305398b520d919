"""Judging a tuned model: prompts in, figures with their uncertainty and a readable report out."""
