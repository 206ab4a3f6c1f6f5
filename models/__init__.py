"""Networks to try the tool on: a small one that ships with the project, and a manifest of public ones."""
