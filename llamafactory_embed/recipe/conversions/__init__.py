"""One table for each tool that people come from: old flag → our options, or why there is none."""

from .diffullama import DIFFULLAMA
from .flagembedding import FLAG_EMBEDDING
from .llm2vec import LLM2VEC
from .ms_swift import MS_SWIFT
from .sentence_transformers import SENTENCE_TRANSFORMERS
from .table import Tool
from .tdro import TDRO
from .tevatron import TEVATRON


TOOLS: dict[str, Tool] = {
    tool.key: tool for tool in (LLM2VEC, TDRO, TEVATRON, FLAG_EMBEDDING, SENTENCE_TRANSFORMERS, MS_SWIFT, DIFFULLAMA)
}
