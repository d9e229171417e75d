"""Packaging. The version is read from engine/__init__.py, which says why it stays low, without importing it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PROGRAMS = ("pretrain", "finetune", "predict", "prepare", "convert", "compare", "report", "app", "demo", "demo_own")
[VERSION] = re.findall(r'^__version__ = "(.+?)"', (ROOT / "engine" / "__init__.py").read_text(), re.MULTILINE)

setup(
    name="clipvil-engine",
    version=VERSION,
    description="Pre-training engine for CLIP-ViL: DeepSpeed ZeRO-2, two optimisers, grid sub-sampling",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["CLIP-ViL", "vision and language", "pre-training", "VQA", "DeepSpeed", "ZeRO", "PyTorch", "Triton"],
    classifiers=[
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["engine*", "kernels*", "launch*", "ds_configs"]),
    package_data={
        "ds_configs": ["*.json"],
        "engine.app": ["page/*"],
        "engine.report": ["*.jinja"],
        "launch": ["recipes/*.yaml"],
    },
    entry_points={
        "console_scripts": [f"clipvil-{name.replace('_', '-')} = launch.{name}:main" for name in PROGRAMS],
    },
    install_requires=[
        "torch>=2.10",
        "triton>=3.6; platform_system == 'Linux'",
        "deepspeed>=0.19.7",
        "transformers>=5.3",
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "numpy>=1.26",
        "pillow>=11.0",
        "lmdb>=1.5",
        "lz4>=4.3",
        "msgpack>=1.0",
        "msgpack-numpy>=0.4.8",
        "pyyaml>=6.0",
        "tqdm>=4.66",
        "ninja>=1.11",
    ],
    extras_require={
        "simplejpeg": ["simplejpeg>=1.7"],  # --image_decoder simplejpeg
        "monitor": ["tensorboard>=2.15", "wandb>=0.19", "comet_ml>=3.41"],  # --monitor, which takes any of them
        "data": ["pyarrow>=15", "datasets>=3.0"],  # --train FILE.parquet; a folder that `datasets` has saved
        "onnx": ["onnx>=1.17", "onnxscript>=0.3"],  # convert.py --to onnx
        "benchmark": ["matplotlib>=3.8"],  # plots of kernels.benchmark
        "report": ["matplotlib>=3.8", "jinja2>=3.1"],  # launch/report.py
        "app": ["starlette>=0.47", "uvicorn>=0.30", "python-multipart>=0.0.18", "jinja2>=3.1"],  # launch/app.py
        "dev": [
            *("pytest>=8.0", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.12", "mypy>=1.15", "pre-commit>=4.0"),
            *("simplejpeg>=1.7", "matplotlib>=3.8", "tensorboard>=2.15", "wandb>=0.19", "types-PyYAML", "types-tqdm"),
            *("pyarrow>=15", "datasets>=3.0", "onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"),
            *("jinja2>=3.1", "starlette>=0.47", "uvicorn>=0.30", "python-multipart>=0.0.18"),
            *("playwright>=1.49", "sybil>=8.0"),  # a browser for the pages, which Debian's chromium is; documents
            "setuptools>=77",  # builds the wheel that tests install
        ],
    },
)
