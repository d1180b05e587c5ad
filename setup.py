"""What pyproject.toml cannot say: `configs/` is installed as data of npbench."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["npbench*", "datamodules*"]), "npbench.configs"],
    package_dir={"npbench.configs": "configs"},
)
