"""What a stage is (the public API for other packages), the stages that are registered, and our own."""

from .own import CONTRASTIVE, DDM, DDM_SFT, MNTP, TDRO, WORD_TASK
from .stage import Stage


__all__ = ["CONTRASTIVE", "DDM", "DDM_SFT", "MNTP", "TDRO", "WORD_TASK", "Stage"]
