"""`npbench import-official`: a checkpoint of the paper's official code becomes one of ours."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from npbench.commands.sections import instantiate
from npbench.interop import official
from npbench.training import MetaRegression

_DESCRIPTION = """\
Turn a checkpoint of the paper's official code into one that npbench takes.

  npbench import-official results/gp/cmanp/ckpt.tar --model cmanp --config configs/gp/cmanp.yaml
  npbench test --config configs/gp/cmanp.yaml --ckpt_path results/gp/cmanp/npbench-cmanp.ckpt

The configuration says which model it is and how large. The file is read without running code."""


def run(args: Sequence[str]) -> None:
    options = _options().parse_args(args)
    module = instantiate(options.config, "model", MetaRegression)
    official.load_weights(module.model, options.model, options.checkpoint)
    out = options.out or options.checkpoint.with_name(f"npbench-{options.model}.ckpt")
    _save(module, out)
    print(f"{out} written; evaluate it with")
    print(f"  npbench test --config {options.config} --ckpt_path {out}")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="npbench import-official",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="official checkpoint")
    parser.add_argument("--model", required=True, help="its official name: cmanp, lbanpnd, …")
    parser.add_argument("--config", type=Path, required=True, help="whose model section it fits")
    parser.add_argument("--out", type=Path, help="npbench-MODEL.ckpt beside CKPT by default")
    return parser


def _save(module: MetaRegression, path: Path) -> None:
    """A Lightning checkpoint of an untrained module; complete, or not there."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(partial)
    os.replace(partial, path)
