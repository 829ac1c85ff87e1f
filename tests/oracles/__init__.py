"""Independent truths: formulas in extended precision, error bounds, published problems."""
