"""The only room that imports ONNX Runtime.

session   whole models, quiet, with errors of ours; the options that weight-only models need partial   a model
run piece by piece: the value of any tensor, other values put in its place, what comes after it batches   the
values of one tensor, in memory or in temporary files
"""
