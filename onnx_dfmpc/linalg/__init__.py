"""Covariances, whole or in factors, and products that do not depend on the number of threads (NumPy)."""
