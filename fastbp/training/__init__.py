"""Training: the data of a fit, callbacks, and the first-order methods with their loop and state."""
