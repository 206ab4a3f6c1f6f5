"""What a user calls, and the one order in which data passes through the rooms.

run      quantize, plan, apply, inspect
job      a model and what to do to it, checked before any work is done
sources  the sources of statistics by name: `SOURCES`
steps    measure, predict, allocate, evaluate, finish
results  what a run returns
"""
