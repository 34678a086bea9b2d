"""Record the exact inverse of a flow as CUDA graphs on the null device, and then something that waits.

Prints a JSON line: forbidden calls and launches of a first call, which records, and of a second, which replays; and
forbidden calls of a recording that asks for a number.
"""

import ctypes
import json

import torch

torch.cuda.is_available = lambda: True

from genflow.flow_teachers.tarflow import TARFlow  # noqa: E402

BLOCKS = 2


def main() -> None:
    counts = ctypes.CDLL(None)
    flow = TARFlow(8, 4, 2, 32, blocks=BLOCKS, layers=2, num_classes=10, head_width=16).cuda()
    flow.capture()
    z, labels = torch.zeros(3, 4, 8, 8, device="cuda"), torch.zeros(3, dtype=torch.int64, device="cuda")
    report = {"blocks": BLOCKS}
    for call in ("recorded", "replayed"):
        before = counts.null_cuda_launches(), counts.null_cuda_forbidden()
        flow.inverse_states(z, labels, guidance=1.5)
        report[call] = {
            "launches": counts.null_cuda_launches() - before[0],
            "forbidden": counts.null_cuda_forbidden() - before[1],
        }
    before = counts.null_cuda_forbidden()
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            z.sum().item()
    except RuntimeError:
        pass
    report["planted"] = counts.null_cuda_forbidden() - before
    print(json.dumps(report))


if __name__ == "__main__":
    main()
