"""What a wheel holds besides the packages: the configuration files, which in the repository stand beside them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfiguration(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for part in ("conf", "experiments"):
                for file in Path(part).glob("**/*.yaml"):
                    place = Path(self.build_lib, "provla", file)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place)


setup(cmdclass={"build_py": WithConfiguration})
