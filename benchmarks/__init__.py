"""What produces every number that the project quotes: accuracy, cost, and the methods to compare with."""
