"""How integer codes lie in the file, and the nodes that make a float weight of them again.

types    ONNX's integer types; a weight, its tensors and nodes before its numbers are known, and their size
tables   codes as digits in bytes, and the tables that unpack them
layouts  the storage formats, by name: to add one, add a function to `layouts.STORAGES`
"""
