"""Language models as this package runs them. Whoever loads one through it knows Dream and LLaDA."""

from . import families as families
