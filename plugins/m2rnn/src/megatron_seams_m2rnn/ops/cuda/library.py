"""Compiling, keeping, loading and launching the CUDA of the ``cuda`` backend (``csrc/``).

NVRTC compiles it, so that no compiler is wanted on the machine: through ``cuda-bindings``, NVIDIA's
own Python package, which torch itself requires on Linux. A kernel is compiled for the device and
the sizes that first want it, in seconds, and kept beside torch's own extensions.
"""

import ctypes
import functools
import hashlib
from pathlib import Path
from typing import Any, Final

import torch

from megatron_seams.runtime.extensions import (
    NotBuilt,
    extensions_folder,
    keep_bytes,
    kept_bytes,
)
from megatron_seams_m2rnn.ops.cuda.kernel import Kernel

SOURCES: Final = Path(__file__).parent / "csrc"
_NAME: Final = "megatron_seams_m2rnn_cuda"

_STRIDES: Final = ("q_batch", "q_step", "k_batch", "k_step", "v_batch", "v_step")
_COUNTS: Final = (
    *("batch", "steps", "heads", "documents"),
    *("q_share", "k_share", "v_share", "w_share", "f_share"),
    *("every", "slots", "ring"),
)
_TENSORS: Final = (
    *("q", "k", "v", "f", "W", "h0", "cumulative", "y", "last", "kept", "dy", "dlast"),
    *("dq", "dk", "dv", "dv_heads", "df", "dW", "dh0", "ring_q", "ring_k", "progress"),
)


class Call(ctypes.Structure):
    """``Call`` of ``csrc/call.cuh``, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_int32) for name in _COUNTS),
        ("clip", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _TENSORS),
    )


def launch(kernel: Kernel, call: Call, *, blocks: int, device: torch.device) -> None:
    """Launch a kernel on torch's current stream of ``device``; nothing waits.

    Args:
        kernel: The kernel, compiled and loaded where it is not yet.
        call: What it works on. The memory is the caller's.
        blocks: Of the grid.
        device: A GPU.

    Raises:
        NotBuilt: The kernel cannot be compiled or loaded.
        RuntimeError: It cannot be launched.
    """
    from cuda.bindings import driver  # type: ignore[import-untyped]  # no types are shipped

    with torch.cuda.device(device):
        function = _load(kernel, device.index)
        # The arguments of a launch are read before it returns.
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(call))
        go = driver.cuLaunchCooperativeKernel if kernel.cooperative else driver.cuLaunchKernel
        given = (
            *(function, blocks, 1, 1, kernel.threads, 1, 1, kernel.shared),
            *(torch.cuda.current_stream(device).cuda_stream, ctypes.addressof(arguments)),
        )
        (status,) = go(*given) if kernel.cooperative else go(*given, 0)
        if status:
            message = f"launching {kernel.name} with {blocks} blocks failed: {status.name}"
            raise RuntimeError(message)


@functools.cache
def fault() -> str | None:
    """Why this process can compile no CUDA; None where it can."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except ImportError:
        return "the package cuda-bindings is not installed"
    except RuntimeError as error:  # what its search for libraries raises
        return f"the library NVRTC is not installed: {error}"
    return None


def compiled(kernel: Kernel, architecture: int) -> bytes:
    """A kernel's code for GPUs of one compute capability, compiled where it is not kept yet.

    Args:
        kernel: The kernel.
        architecture: The compute capability: 90 for 9.0.

    Returns:
        An image that the driver loads: machine code, or PTX for a GPU younger than NVRTC.

    Raises:
        NotBuilt: NVRTC is not there, or cannot compile it.
    """
    missing = fault()
    if missing:
        raise NotBuilt(missing)
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    sources = {file.name: file.read_text() for file in sorted(SOURCES.glob("*.cuh"))}
    options = (f"--gpu-architecture={_target(architecture)}", "--std=c++17", *kernel.options)
    key = hashlib.sha256(repr((major, minor, options, sources)).encode()).hexdigest()[:32]
    file = extensions_folder() / _NAME / f"{kernel.name}-{key}.cubin"
    code = kept_bytes(file)
    if code is None:
        code = _compile(kernel.name, sources, options)
        keep_bytes(file, code)
    return code


def _target(architecture: int) -> str:
    """The machine that NVRTC compiles for: the device's, or the last that NVRTC knows, as PTX."""
    from cuda.bindings import nvrtc

    _, known = nvrtc.nvrtcGetSupportedArchs()
    if architecture not in known:
        return f"compute_{max(known)}"
    return f"sm_{architecture}" + ("a" if architecture == 90 else "")  # with its own instructions


def _compile(name: str, sources: dict[str, str], options: tuple[str, ...]) -> bytes:
    from cuda.bindings import nvrtc

    headers = [text.encode() for text in sources.values()]
    names = [file.encode() for file in sources]
    text = f'#include "{name}.cuh"\n'.encode()
    status, program = nvrtc.nvrtcCreateProgram(
        text, f"m2rnn_{name}.cu".encode(), len(headers), headers, names
    )
    _check(status, "nvrtcCreateProgram")
    try:
        given = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
        if status:
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = b" " * size
            nvrtc.nvrtcGetProgramLog(program, log)
            message = f"compiling {name} failed: {log.decode(errors='replace').strip()}"
            raise NotBuilt(message)
        machine = options[0].partition("=")[2].startswith("sm_")
        size_of, read = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
            if machine
            else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        status, size = size_of(program)
        _check(status, size_of.__name__)
        code = b" " * size
        (status,) = read(program, code)
        _check(status, read.__name__)
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@functools.cache
def _load(kernel: Kernel, device: int) -> Any:
    """Load a kernel into the context of a device, which is the current one."""
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(device)
    code = compiled(kernel, 10 * major + minor)
    status, module = driver.cuModuleLoadData(code)
    _check(status, "cuModuleLoadData")
    status, function = driver.cuModuleGetFunction(module, f"m2rnn_{kernel.name}".encode())
    _check(status, "cuModuleGetFunction")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuFuncSetAttribute(function, attribute, kernel.shared)
    _check(status, "cuFuncSetAttribute")
    return function


def _check(status: Any, what: str) -> None:
    if status:
        message = f"{what} failed: {status.name}"
        raise NotBuilt(message)
