"""Packaging. The version is read from engine/__init__.py, which says why it stays low, without importing it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PROGRAMS = ("pretrain", "finetune", "predict", "prepare", "convert", "compare", "report", "app", "demo", "demo_own")
[VERSION] = re.findall(r'^__version__ = "(.+?)"', (ROOT / "engine" / "__init__.py").read_text(), re.MULTILINE)
EXTRAS = {
    "simplejpeg": ["simplejpeg>=1.8"],  # --image_decoder simplejpeg
    "monitor": ["tensorboard>=2.18", "wandb>=0.23", "comet_ml>=3.41"],  # --monitor, which takes any of them
    "data": ["pyarrow>=17", "datasets>=4.0"],  # --train FILE.parquet; a folder that `datasets` has saved
    "onnx": ["onnx>=1.17", "onnxscript>=0.3"],  # convert.py --to onnx
    "benchmark": ["matplotlib>=3.9"],  # plots of kernels.benchmark
    "report": ["matplotlib>=3.9", "jinja2>=3.1"],  # launch/report.py
    "app": ["starlette>=1.7", "uvicorn>=0.30", "python-multipart>=0.0.20", "jinja2>=3.1"],  # launch/app.py
}

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
    # The lowest versions that work together; docs/versions.md says which were tried.
    install_requires=[
        "torch>=2.10",
        "triton>=3.6; platform_system == 'Linux'",
        "deepspeed>=0.19.8",
        "transformers>=5.3",
        "tokenizers>=0.22.1",
        "safetensors>=0.5",
        "numpy>=2.0",
        "pillow>=12.0",
        "lmdb>=1.5",
        "lz4>=4.3",
        "msgpack>=1.1",
        "msgpack-numpy>=0.4.8",
        "packaging>=24.2",
        "pyyaml>=6.0",
        "tqdm>=4.66",
        "ninja>=1.11",
    ],
    extras_require={
        **EXTRAS,
        "dev": [
            *(package for packages in EXTRAS.values() for package in packages if not package.startswith("comet_ml")),
            *("pytest>=8.0", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.12", "mypy>=1.15", "pre-commit>=4.0"),
            *("onnxruntime>=1.20", "playwright>=1.49", "sybil>=8.0", "types-PyYAML", "types-tqdm"),
            *("setuptools>=77", "uv>=0.9"),  # for the wheel that tests install, and make test-versions
        ],
    },
)
