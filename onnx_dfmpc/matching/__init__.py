"""Which nodes carry weights that can be quantized, what belongs to each, and which layers feed which.

match   a model to layers, chains, and skipped nodes with reasons
chains  from a layer to those that read it
rules   what operators between two layers do to their channels
walk    the graph as onnx-graphsurgeon reads it
"""
