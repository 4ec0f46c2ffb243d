"""`llamafactory-embed export`: a checkpoint as a folder that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path


LAYOUTS = ("sentence-transformers", "adapter", "llm2vec")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is exported, where to, and how."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that training wrote")
    parser.add_argument("folder", metavar="FOLDER", help="the folder to write; it must not exist")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        help="sentence-transformers: merged weights that servers read, too (default); adapter: the adapter alone; "
        "llm2vec: what the llm2vec package loads",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="how weights are saved (default: as the base model's)",
    )
    parser.add_argument("--query-task", metavar="TASK", help="the task whose instruction is the prompt `query`")
    parser.add_argument("--dimensions", type=int, metavar="SIZE", help="cut the embeddings of a Matryoshka model")
    parser.add_argument("--device", default="cpu", help="where merging and checking run (default: cpu)")
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="merge an adapter of QLoRA into the weights as quantization has rounded them (needs CUDA)",
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="the largest file of weights (default: 5GB)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    parser.add_argument("--push-to", metavar="OWNER/NAME", help="upload the folder to the hub when it is checked")
    parser.add_argument("--private", action="store_true", help="make the new repository on the hub private")
    parser.add_argument("--dry-run", action="store_true", help="with --push-to: say what would be uploaded")


def run(arguments: argparse.Namespace) -> int:
    """Export, check, and push if that was asked for."""
    if arguments.push_to is None and (arguments.private or arguments.dry_run):
        raise ValueError(
            f"`--{'private' if arguments.private else 'dry-run'}` is about pushing: name the repository, `--push-to`."
        )
    from .folder import check_repository, plan_push, push

    if arguments.push_to is not None:
        check_repository(arguments.push_to)
    _export(arguments)
    if arguments.push_to is not None:
        planned = plan_push(Path(arguments.folder), arguments.push_to, arguments.private)
        print(planned.describe())
        if arguments.dry_run:
            print("Nothing was uploaded: this is a dry run.")
        else:
            print(f"Uploaded: {push(Path(arguments.folder), planned)}")
    return 0


def _export(arguments: argparse.Namespace) -> None:
    from .export import ExportOptions, export_checkpoint, quiet_loaders

    quiet_loaders()
    if arguments.layout != "sentence-transformers":
        _export_adapter(arguments)
        return
    options = ExportOptions(
        dtype=arguments.dtype,
        device=arguments.device,
        query_task=arguments.query_task,
        dimensions=arguments.dimensions,
        dequantize=arguments.dequantize,
        max_shard_size=arguments.max_shard_size,
        overwrite=arguments.overwrite,
    )
    exported = export_checkpoint(arguments.checkpoint, arguments.folder, options)
    print(f"Exported to {exported.folder} in {exported.dtype}.")
    print(
        "Loaded again by sentence-transformers, transformers and Encoder: the embeddings of the sample texts differ "
        f"by {exported.agreement.alone:.1e} at most, in padded batches by {exported.agreement.in_batch:.1e}."
    )
    if exported.dtype != "float32":
        print(f"Rounding to {exported.dtype} has moved them by {exported.rounding:.1e} (1 - cosine).")
    for remark in exported.remarks:
        print(f"- {remark}")


def _export_adapter(arguments: argparse.Namespace) -> None:
    from .adapter import export_adapter
    from .llm2vec import export_llm2vec

    refuse_unused(arguments)
    options = {"overwrite": arguments.overwrite, "device": arguments.device}
    if arguments.layout == "adapter":
        remarks = export_adapter(arguments.checkpoint, arguments.folder, **options)
    else:
        options |= {"dtype": arguments.dtype, "max_shard_size": arguments.max_shard_size}
        remarks = export_llm2vec(arguments.checkpoint, arguments.folder, **options)
    print(f"Exported to {arguments.folder}; loaded again, it embeds the sample texts as the checkpoint does.")
    for remark in remarks:
        print(f"- {remark}")


def refuse_unused(arguments: argparse.Namespace) -> None:
    """Options that would have no effect on the chosen layout."""
    unused = {
        "--query-task": arguments.query_task is not None,
        "--dimensions": arguments.dimensions is not None,
        "--dequantize": arguments.dequantize,
        "--dtype": arguments.layout == "adapter" and arguments.dtype != "auto",
    }
    for option, is_set in unused.items():
        if is_set:
            raise ValueError(f"`{option}` has no effect on `--layout {arguments.layout}`: leave it out.")
