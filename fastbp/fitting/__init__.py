"""`fit` and `multistart` of networks: their arguments, methods and results."""
