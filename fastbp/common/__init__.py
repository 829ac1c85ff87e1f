"""What every other room uses: checks and conversions of arrays, errors, the terminal, timing."""
