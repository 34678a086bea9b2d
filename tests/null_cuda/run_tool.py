"""Run a tool on the null device, which this process must have been started with: ``run_tool.py tools/train.py ...``.

Convolutions and attention take torch's own kernels, not cuDNN's, and processes speak over gloo, not NCCL: the null
device lacks both.
"""

import runpy
import sys

import torch
import torch.distributed as dist

_init = dist.init_process_group


def _over_gloo(backend, timeout, device_id):
    assert backend == "nccl" and device_id.type == "cuda"
    _init("gloo", timeout=timeout)


if __name__ == "__main__":
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    dist.init_process_group = _over_gloo
    # Sizes that go through the device come back as zeros.
    torch.nn.parallel.distributed._verify_param_shape_across_processes = lambda *_: True
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
