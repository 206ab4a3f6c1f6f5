"""Many models, many settings: jobs on one machine or on a cluster, a row for each, a page at the end.

grid        models and a file of settings to jobs, each with the key that tells whether it is done
job         one job to one row
executors   rows of many jobs, in worker processes or on a Dask cluster; a row in `EXECUTORS` each
store       rows in an append-only file, which a second run goes on from
summary     rows to an outline: the front of size and quality, by model and by setting
"""

from onnx_dfmpc.sweep.run import sweep

__all__ = ["sweep"]
