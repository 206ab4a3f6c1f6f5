"""Linear algebra over the inputs of a layer (NumPy).

matrices   covariances and triangular factors, whole or as a Kronecker product
products   products and factorisations that do not depend on the number of threads
"""
