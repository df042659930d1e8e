"""Other engines for the same network: TorchScript, ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from medvol.core.errors import ConfigError, MissingPackageError
from medvol.core.files import atomic_path

Engine = Literal["torch", "torchscript", "onnx", "openvino", "tensorrt"]
Predictor = Callable[[torch.Tensor], torch.Tensor]

#: File name of an exported network, inside a bundle's ``models`` or any folder.
FILES: dict[str, str] = {
    "torchscript": "model.ts",
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "tensorrt": "model_trt.ts",
}


def export(
    network: torch.nn.Module, to: str, path: str | os.PathLike[str], window: Sequence[int]
) -> Path:
    """Write a network for another engine; batch size stays free, the window is fixed.

    Args:
        network: In evaluation mode, on the CPU.
        to: ``torchscript``, ``onnx``, ``openvino`` or ``tensorrt``.
        path: File to write; OpenVINO puts the weights beside it.
        window: Channels and window size, (C, spatial...).

    Raises:
        ConfigError: If the engine is unknown, or TensorRT is asked for without a CUDA device.
        MissingPackageError: If its package is not installed.
    """
    path = Path(path)
    example = torch.zeros((2, *window))
    if to == "torchscript":
        with torch.no_grad(), warnings.catch_warnings(), atomic_path(path) as scratch:
            # shape checks inside layers are constants of the fixed window
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            traced: Any = torch.jit.trace(network, example, check_trace=False)
            traced.save(str(scratch))
    elif to == "onnx":
        _need("onnxscript", "onnx")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # tells of torchvision's absence
        with atomic_path(path) as scratch:
            torch.onnx.export(
                network, (example,), str(scratch), dynamo=True, external_data=False,
                input_names=["image"], output_names=["pred"], verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    elif to == "openvino":
        openvino = _need("openvino", "openvino")
        model = convert_openvino(network, window)
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, str(path), compress_to_fp16=False)
    elif to == "tensorrt":
        _export_tensorrt(network, path, window)
    else:
        raise ConfigError(f"engine {to!r} is unknown; choose from {', '.join(FILES)}")
    return path


def convert_openvino(network: torch.nn.Module, window: Sequence[int]) -> Any:
    """An OpenVINO model of a network, not yet compiled."""
    openvino = _need("openvino", "openvino")
    shape = openvino.PartialShape([-1, *window])
    with torch.no_grad():
        return openvino.convert_model(
            network, example_input=torch.zeros((1, *window)), input=[shape]
        )


def open_engine(engine: str, path: str | os.PathLike[str], threads: int = 0) -> Predictor:
    """A predictor of windows that runs an exported network on the CPU; TensorRT's on a GPU.

    Args:
        engine: ``torchscript``, ``onnx``, ``openvino`` or ``tensorrt``.
        path: What :func:`export` wrote.
        threads: Threads to use; 0 leaves the engine's choice.

    Raises:
        ConfigError: If the engine is unknown.
        MissingPackageError: If its package is not installed.
    """
    if engine == "torchscript":
        return torch.jit.load(str(path), map_location="cpu").eval()
    if engine == "onnx":
        return _onnx(str(path), threads)
    if engine == "openvino":
        openvino = _need("openvino", "openvino")
        return compiled_openvino(openvino.Core().read_model(str(path)), threads)
    if engine == "tensorrt":
        return _tensorrt(str(path))
    raise ConfigError(f"engine {engine!r} is unknown; choose from {', '.join(get_args(Engine))}")


def compiled_openvino(model: Any, threads: int = 0) -> Predictor:
    """Compile for this CPU in float32: the device's own half precisions change masks."""
    openvino = _need("openvino", "openvino")
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def predict(window: torch.Tensor) -> torch.Tensor:
        found = request.infer({0: np.ascontiguousarray(_plain(window))}, share_inputs=True)
        return torch.from_numpy(np.array(found[0]))

    return predict


def _onnx(path: str, threads: int) -> Predictor:
    runtime = _need("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(window: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: _plain(window)})[0])

    return predict


def _export_tensorrt(network: torch.nn.Module, path: Path, window: Sequence[int]) -> None:
    """MONAI's conversion, in single precision: half changes masks."""
    _need_tensorrt()
    from monai.networks.utils import convert_to_trt

    converted: Any = convert_to_trt(
        network.cuda(), "fp32", [1, *window], dynamic_batchsize=[1, 1, 8], use_trace=True
    )
    with atomic_path(path) as scratch:
        torch.jit.save(converted, str(scratch))
    network.cpu()


def _tensorrt(path: str) -> Predictor:
    _need_tensorrt()
    engine: Any = torch.jit.load(path, map_location="cuda").eval()

    def predict(window: torch.Tensor) -> torch.Tensor:
        return engine(window.cuda()).to(window.device)

    return predict


def _need_tensorrt() -> None:
    if not torch.cuda.is_available():
        raise ConfigError("tensorrt needs a CUDA device, and PyTorch finds none here")
    _need("torch_tensorrt", "")


def _plain(window: torch.Tensor) -> Any:
    return window.detach().cpu().numpy()


def _need(package: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        wanted = f"medvol[{extra}]" if extra else package.replace("_", "-")
        raise MissingPackageError(f"this engine needs {package}: pip install '{wanted}'") from error
