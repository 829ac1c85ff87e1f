"""Saved runs: tables, plots, comparisons."""
