"""A real federation whose processes are killed at random while it trains, and what must hold."""
