"""Quantized layers into an edited copy of the graph, and the size of that before anything is quantized.

editor  the edits on a graph, layer by layer, and nothing left of what they replace
apply   quantized layers -> edits -> a new model
sizes   bytes of a model that does not exist yet: the same edits without numbers
"""
