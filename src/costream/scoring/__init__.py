"""Scores of queries against stored items."""
