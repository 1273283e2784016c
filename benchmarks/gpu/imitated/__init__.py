"""An imitated CUDA runtime: with it ONNX Runtime's own CUDA provider opens sessions on a machine without a GPU.

`build(folder)` compiles the libraries; a process started with `LD_LIBRARY_PATH=folder` then has an "Imitated H100".
Which nodes the provider takes, where it inserts copies, and how many bytes go which way are the provider's own. Kernels
do nothing, so results and times mean nothing, and a convolution fails (its cuDNN refuses).

Environment of such a process: `R2G_FREE_BYTES` and `R2G_TOTAL_BYTES` set the device's memory (default 79 of 80 GiB; an
allocation past it fails as out of memory), `R2G_DEVICES` the number of devices (default 1), `R2G_DRIVER` the CUDA
version of the driver (default 13000). A machine without cuDNN is imitated by a copy of the folder without
`libcudnn.so.9`.
"""

from benchmarks.gpu.imitated.copies import Copy, CopyLog
from benchmarks.gpu.imitated.libraries import build, why_not

__all__ = ["Copy", "CopyLog", "build", "why_not"]
