"""The merchant's side: the silo (tables, trainer, privacy) and the Flower ClientApp before it."""
