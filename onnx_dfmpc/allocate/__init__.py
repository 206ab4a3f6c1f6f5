"""Bits per layer: as the recipe gives them, or as a cost table makes them worth their bytes (NumPy alone).

fixed     the same bits everywhere, or pairs of a low and a high layer along the chains
knapsack  the least noise for every number of bytes
budget    a target or a preset to a plan, with reasons
"""
