"""Summaries and figures of results, and the words that they share."""
