"""How integer codes lie in the file, and the nodes that make a float weight of them again.

types    ONNX's integer types; a weight, its tensors and nodes before its numbers are known, and their size
planes   codes of odd widths as planes of 4, 2 and 1 bits
layouts  the storage formats, by name: to add one, add a function to `layouts.STORAGES`
"""
