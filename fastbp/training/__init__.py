"""First-order training: update rules and the loop that runs them inside a backend."""
