"""ONNX files and protobufs: load and check, save, opsets, constants. Everything that has to know protobuf is
here.

files      load and save, external data
checks     what a model has to be before anything else looks at it
opset      raise opset and IR version, keep everything that the converter forgets
constants  which tensors are constant, and who reads them
protobuf   small tools
"""
