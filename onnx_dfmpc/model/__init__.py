"""ONNX models as protobufs: everything that has to know protobuf is here.

files      load and check, save; external data
writing    files that appear whole, together, and over nothing that was not asked for
opset      raise opset and IR version, keep everything that the converter forgets
constants  which tensors are constant, and who reads them
protobuf   small tools
"""
