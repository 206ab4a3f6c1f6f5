"""Float model against quantized model.

validation   what a validation reports
compare      both models on the same inputs: `validate`, and what a recipe asks for beyond it
metrics      how far arrays are from each other, added up over batches
classes      what is measured of classifiers
gates        the user's limits
diagnose     which layer broke it, and what to change
latency      inference times
command      the command line that repeats a validation
evidence     what a report shows of a layer's numbers
"""
