"""Data modules: every batch that they give is an `npbench.Task`."""

from datamodules.gp import Curriculum, GPDataModule

__all__ = ["Curriculum", "GPDataModule"]
