"""What people read of a result: summaries, figures, and the words that they share."""
