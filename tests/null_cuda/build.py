"""The null device: a library for LD_PRELOAD that answers CUDA's runtime, made of null_cuda.c and stubs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("null_cuda.c")
_LIBRARIES = ("torch_cuda", "c10_cuda", "torch_cuda_linalg", "torch_python", "caffe2_nvrtc")
_ANSWERED = re.compile(r"^(__cuda|cuda|cublas|cusolver|cu[A-Z])")
# What a device would do; handles and settings are not counted.
_COUNTED = re.compile(r"^(cublas.*(gemm|Gemm|Matmul$|dot|gemv|trsm|get|geq|gels)|cusolverDn[A-Z].*(?<!Size)$)")
_FINE = re.compile(r"bufferSize|Create|Destroy|Set|Get[A-Z]|Heuristic")


def unavailable() -> str | None:
    """Why the null device cannot be made here; None if it can."""
    if not (Path(torch.__file__).parent / "lib" / "libtorch_cuda.so").is_file():
        return "torch was built without CUDA"
    if not (_headers() / "cuda_runtime_api.h").is_file():
        return "the CUDA runtime's headers are not installed"
    for program in ("cc", "nm"):
        if shutil.which(program) is None:
            return f"no {program}"
    return None


def _headers() -> Path:
    return Path(torch.__file__).parent.parent / "nvidia" / f"cu{(torch.version.cuda or '0').split('.')[0]}" / "include"


def build(folder: Path) -> Path:
    """Compile it into ``folder``; returns the library."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = set()
    for name in _LIBRARIES:
        library = Path(torch.__file__).parent / "lib" / f"lib{name}.so"
        if library.is_file():
            listing = subprocess.run(
                ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
            ).stdout
            wanted |= {line.split()[-1].split("@")[0] for line in listing.splitlines()}
    # Triton, which some of torch's operators are written in, asks the driver itself.
    wanted |= set(re.findall(r"CUDAAPI (cu[A-Z]\w+)\(", (_headers() / "cuda.h").read_text()))
    main = folder / "null_cuda.o"
    compiler = ["cc", "-O1", "-fPIC", "-I", str(_headers()), "-I", str(_SOURCE.parent)]
    subprocess.run([*compiler, "-c", str(_SOURCE), "-o", str(main)], check=True)
    defined = subprocess.run(["nm", "--defined-only", main], capture_output=True, text=True, check=True).stdout
    wanted = {name for name in wanted if _ANSWERED.match(name)} - {line.split()[-1] for line in defined.splitlines()}
    stubs = folder / "stubs.c"
    lines = ["void null_cuda_count(void);"]
    for name in sorted(wanted):
        counted = _COUNTED.match(name) and not _FINE.search(name)
        lines.append(f"int {name}(void) {{ {'null_cuda_count(); ' if counted else ''}return 0; }}")
    stubs.write_text("\n".join(lines) + "\n")
    library = folder / "libnull_cuda.so"
    named = ["-shared", "-w", "-Wl,-soname,libnull_cuda.so", str(main), str(stubs), "-o", str(library)]
    subprocess.run([*compiler, *named], check=True)
    empty = folder / "empty.c"
    empty.write_text("")
    driver = ["-Wl,-soname,libcuda.so.1", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", str(empty), str(library)]
    subprocess.run([*compiler, "-shared", *driver, "-o", str(folder / "libcuda.so.1")], check=True)
    return library


def environment(library: Path, gibibytes: int = 80) -> dict[str, str]:
    """Variables of a process that has a null device."""
    return os.environ | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "NULL_CUDA_GIB": str(gibibytes),
    }
