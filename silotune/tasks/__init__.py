"""What is learned: tables become examples, with a head, a loss and metrics."""
