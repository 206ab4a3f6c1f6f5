"""How integer codes lie in the file, and the nodes that make a float weight of them again.

types    ONNX's integer types, and numbers that have to fit them
parts    a stored weight before its numbers are known
layouts  the nodes of each storage format
planes   odd widths as planes of 4, 2 and 1 bits
"""
