"""`llamafactory-embed inspect SOURCE`: what a checkpoint is, and what can be done with it, without loading a weight."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from ..hparams.command_line import add_options, read_options
from ..hparams.option import REQUIRED, option
from ..hparams.source import SourceOptions
from ..loading.headers import Weights, measure_weights
from ..loading.repository import MODEL_CONFIG_NAME, Repository
from ..loading.source import TITLES, Source, find_chain, find_kind, find_source
from ..model.families import find_family
from ..model.pooling import TokenPooling
from dataclasses import dataclass
