"""The pass where people work. Each module is for one host, imports it and the pipeline, and nothing else.

onnx_ir       a pass among those of onnx-ir
olive         a pass of Microsoft Olive, and the package configuration that has it
polygraphy    a runner of ``polygraphy run``
torch         from a module to a quantized file, with batch norm kept on the way
"""
