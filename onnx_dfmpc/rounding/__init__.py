"""Float rows to integer codes, scale and zero point (NumPy, arrays in and arrays out)."""
