"""What all other folders use: checks and conversions of arrays, errors, the terminal, timing."""
