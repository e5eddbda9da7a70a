"""Hydra takes sweepers and launchers from this package alone; provla's are written in `provla.study`, where everything
heavy is imported late.
"""

from provla.study import grid, on_joblib, on_ray, on_slurm, search


class GridSweeper(grid.GridSweeper):
    __doc__ = grid.GridSweeper.__doc__


class SearchSweeper(search.SearchSweeper):
    __doc__ = search.SearchSweeper.__doc__


class JoblibLauncher(on_joblib.JoblibLauncher):
    __doc__ = on_joblib.JoblibLauncher.__doc__


class RayLauncher(on_ray.RayLauncher):
    __doc__ = on_ray.RayLauncher.__doc__


class LocalLauncher(on_slurm.LocalLauncher):
    __doc__ = on_slurm.LocalLauncher.__doc__


class SlurmLauncher(on_slurm.SlurmLauncher):
    __doc__ = on_slurm.SlurmLauncher.__doc__
