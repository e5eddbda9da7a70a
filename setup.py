"""What a wheel holds besides the packages: the configuration files, and the README's examples for `--help`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfiguration(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in (*Path("conf").glob("**/*.yaml"), *Path("experiments").glob("*.yaml"), Path("README.md")):
                place = Path(self.build_lib, "provla", file)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)


setup(cmdclass={"build_py": WithConfiguration})
