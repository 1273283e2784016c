"""An environment for each peer, made with pip: `python -m benchmarks.peers.environments DIR [NAME ...]`.

None of these packages is a dependency of r2gen; llama-cpp-python is compiled for this machine (-march=native).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import venv
from pathlib import Path
from typing import Final

PACKAGES: Final = {
    "onnxruntime-genai": ["onnxruntime-genai", "onnx", "onnx-ir", "transformers>=5", "torch==2.13.0", "safetensors"],
    "openvino-genai": ["openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf", "torch==2.13.0"],
    "llama.cpp": ["--no-binary", "llama-cpp-python", "llama-cpp-python", "gguf", "safetensors", "numpy"],
}

NO_AMX: Final = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
FLAGS: Final = f"-DGGML_NATIVE=ON '-DCMAKE_C_FLAGS={NO_AMX}' '-DCMAKE_CXX_FLAGS={NO_AMX}'"
"""For this machine's instructions but AMX, with which llama.cpp ended in a segmentation fault on a virtual machine."""


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / name / "bin" / "python"


def finished_mark(folder: Path, name: str) -> Path:
    """The file that is there when a peer's environment has everything."""
    return folder / name / "finished"


def main() -> None:
    """Make the environments that are not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}; default: all")
    asked = parser.parse_args()
    if unknown := set(asked.names) - PACKAGES.keys():
        parser.error(f"no peer is called {', '.join(sorted(unknown))}")
    folder: Path = asked.folder
    for name in asked.names or PACKAGES:
        if finished_mark(folder, name).exists():
            continue
        venv.create(folder / name, with_pip=True, clear=True)
        settings = {**os.environ, "CMAKE_ARGS": FLAGS}
        pip: list[str | Path] = [python_of(folder, name), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *PACKAGES[name]], check=True, env=settings)
        if name == "openvino-genai":
            # optimum-intel brings one for another build of torch, which then does not import.
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", "torchvision"], check=True)
        finished_mark(folder, name).touch()


if __name__ == "__main__":
    main()
