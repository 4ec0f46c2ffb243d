"""Groups of tasks by name: what the papers of the recipes evaluate on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A benchmark of mteb, or tasks of it."""

    title: str
    benchmark: str | None = None
    tasks: tuple[str, ...] = ()


STS = ("BIOSSES", "SICK-R", "STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark")
PAIRS = ("TwitterURLCorpus", "SprintDuplicateQuestions", "TwitterSemEval2015")
CLUSTERING = (
    "ArxivClusteringP2P",
    "ArxivClusteringS2S",
    "BiorxivClusteringP2P.v2",
    "BiorxivClusteringS2S.v2",
    "MedrxivClusteringP2P.v2",
    "MedrxivClusteringS2S.v2",
    "RedditClustering.v2",
    "RedditClusteringP2P.v2",
    "StackExchangeClustering.v2",
    "StackExchangeClusteringP2P.v2",
    "TwentyNewsgroupsClustering.v2",
)
RERANKING = ("AskUbuntuDupQuestions", "MindSmallReranking", "SciDocsRR", "StackOverflowDupQuestions")
CLASSIFICATION = (
    "AmazonPolarityClassification",
    "ToxicConversationsClassification",
    "ImdbClassification",
    "Banking77Classification",
    "EmotionClassification",
    "TweetSentimentExtractionClassification",
)
RETRIEVAL = (
    "ArguAna",
    "NFCorpus",
    "FiQA2018",
    "SciFact",
    "Touche2020",
    "QuoraRetrieval",
    "TRECCOVID",
    "NQ",
    "SCIDOCS",
    "ClimateFEVER",
    "DBPedia",
    "MSMARCO",
    "HotpotQA",
    "FEVER",
)
# The tasks of BRIGHT(v1.1), which leave each query's `excluded_ids` out; mteb's older task `BrightRetrieval` does not.
BRIGHT_LONG = (
    "Biology",
    "EarthScience",
    "Economics",
    "Psychology",
    "Robotics",
    "Stackoverflow",
    "SustainableLiving",
    "Pony",
)
BRIGHT = (*BRIGHT_LONG, "Leetcode", "Aops", "TheoremQATheorems", "TheoremQAQuestions")

GROUPS: dict[str, Group] = {
    "followir": Group("Robust04, News21 and Core17 with instructions (p-MRR)", benchmark="FollowIR"),
    "longembed": Group("six tasks with long documents", benchmark="LongEmbed"),
    "bright": Group("retrieval that takes reasoning", tasks=tuple(f"Bright{name}Retrieval" for name in BRIGHT)),
    "bright-long": Group(
        "the same in whole web pages", tasks=tuple(f"Bright{name}LongRetrieval" for name in BRIGHT_LONG)
    ),
    "beir": Group("fifteen collections", benchmark="BEIR"),
    "miracl": Group("Wikipedia in eighteen languages", tasks=("MIRACLRetrieval",)),
    "miracl-hard": Group("MIRACL in small, pooled corpora", tasks=("MIRACLRetrievalHardNegatives.v2",)),
    "mteb-eng": Group("MTEB(eng, v1), the 56 data sets of the LLM2Vec paper", benchmark="MTEB(eng, v1)"),
    "mteb-eng-v2": Group("MTEB(eng, v2), the leaderboard of today", benchmark="MTEB(eng, v2)"),
    "pooling-attention": Group(
        "what Tang and Yang 2024 evaluate besides retrieval",
        tasks=(*STS, *PAIRS, *CLUSTERING, *RERANKING, "SummEval", *CLASSIFICATION),
    ),
    "pooling-attention-retrieval": Group("their retrieval tasks", tasks=RETRIEVAL),
}

# Splits other than `test` that a task is judged on.
SPLITS = {"MSMARCO": ["dev"]}
