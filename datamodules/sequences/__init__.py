"""Sequences of tokens with a class: ListOps, and text."""

from datamodules.sequences.listops import ListOpsDataModule
from datamodules.sequences.text import TextClassificationDataModule

__all__ = ["ListOpsDataModule", "TextClassificationDataModule"]
