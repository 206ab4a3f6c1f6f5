"""What to feed a model: the user's data, checked against its inputs, or seeded synthetic ones."""
