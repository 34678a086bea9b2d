"""What setup.cfg cannot say: recipes travel with the package, and every command is a console script."""

from pathlib import Path

from setuptools import find_packages, setup

COMMANDS = sorted(path.stem for path in Path("genflow/commands").glob("[a-z]*.py"))

setup(
    packages=[*find_packages(include=["genflow*"]), "genflow.recipes", "genflow.recipes._base_"],
    package_dir={"genflow.recipes": "recipes", "genflow.recipes._base_": "recipes/_base_"},
    package_data={"genflow": ["py.typed"], "genflow.recipes": ["*.yaml"], "genflow.recipes._base_": ["*.yaml"]},
    entry_points={
        "console_scripts": [f"genflow-{name.replace('_', '-')} = genflow.cli.scripts:run_script" for name in COMMANDS]
    },
)
