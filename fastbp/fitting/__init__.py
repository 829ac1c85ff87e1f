"""`fit` and `multistart`: arguments, methods, results, and what follows from a result."""
