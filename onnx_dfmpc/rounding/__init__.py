"""Float rows to integer codes, scale and zero point (NumPy, arrays in and arrays out).

grids        where the levels of a row lie, and rounding to the nearest one
squant       rounding that keeps sums of weights
gptq         rounding that keeps the output, given the covariance of the inputs
regularize   that covariance, as far as it can be trusted
rounding     the methods by name: `ROUNDINGS`
"""
