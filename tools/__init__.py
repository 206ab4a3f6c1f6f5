"""What makes files of the repository out of its code; nothing here is installed."""
