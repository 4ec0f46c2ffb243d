"""`llamafactory-embed export`: a checkpoint as a folder that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..hparams.command_line import add_options, read_options
from ..hparams.source import SourceOptions
from .options import ExportOptions, ExportTarget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is exported, where to, and how."""
    add_options(parser, ExportTarget, ("checkpoint", "folder", "layout"))
    add_options(parser, ExportOptions)
    add_options(parser.add_argument_group("how a checkpoint that is not ours is read"), SourceOptions)
    add_options(parser, ExportTarget, ("push_to", "private", "dry_run", "server"))


def run(arguments: argparse.Namespace) -> int:
    """Export, check, and push if that was asked for."""
    if arguments.push_to is None and (arguments.private or arguments.dry_run):
        raise ValueError(
            f"`--{'private' if arguments.private else 'dry-run'}` is about pushing: name the repository, `--push-to`."
        )
    from ..loading.hub import check_repository, plan_push, push

    if arguments.push_to is not None:
        check_repository(arguments.push_to)
    _export(arguments)
    if arguments.server is not None and _verify(arguments) != 0:
        return 1
    if arguments.push_to is not None:
        planned = plan_push(Path(arguments.folder), arguments.push_to, arguments.private)
        print(planned.describe())
        if arguments.dry_run:
            print("Nothing was uploaded: this is a dry run.")
        else:
            print(f"Uploaded: {push(Path(arguments.folder), planned)}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from .server.command import ServerCheckOptions, report_server

    options = ServerCheckOptions(
        query_task=arguments.query_task, dimensions=arguments.dimensions, device=arguments.device
    )
    return report_server(arguments.folder, arguments.server, options)


def _export(arguments: argparse.Namespace) -> None:
    from ..loading.as_checkpoint import as_checkpoint
    from ..loading.llm2vec_adapters import CONFIG_FILE
    from ..loading.source import find_source
    from ..model.embedding_config import CONFIG_NAME
    from .export import quiet_loaders
    from .folder import check_target

    quiet_loaders()
    refuse_unused(arguments)
    settings, folder = read_options(arguments, SourceOptions).settings, Path(arguments.checkpoint)
    is_token_adapter = (folder / CONFIG_FILE).is_file() and not (folder / CONFIG_NAME).is_file()
    if arguments.layout == "llm2vec" and is_token_adapter and not settings:
        _export_adapter(arguments, folder)  # of a language model, such as one of masked next-token prediction
        return
    source = find_source(arguments.checkpoint, settings)
    check_target(Path(arguments.folder).absolute(), source.own.folder.absolute(), arguments.overwrite)
    if source.kind != "checkpoint":
        print(f"Taken as: {source.description}.")
    with as_checkpoint(source) as checkpoint:
        if arguments.layout == "sentence-transformers":
            _export_layout(arguments, checkpoint)
        elif arguments.layout == "openvino":
            _export_openvino(arguments, checkpoint)
        else:
            _export_adapter(arguments, checkpoint)


def _export_layout(arguments: argparse.Namespace, checkpoint: Path) -> None:
    from .export import export_checkpoint

    exported = export_checkpoint(checkpoint, arguments.folder, read_options(arguments, ExportOptions))
    print(f"Exported to {exported.folder} in {exported.dtype}.")
    print(
        "Loaded again by sentence-transformers, transformers and Encoder: the embeddings of the sample texts differ "
        f"by {exported.agreement.alone:.1e} at most, in padded batches by {exported.agreement.in_batch:.1e}."
    )
    if exported.dtype != "float32":
        print(f"Rounding to {exported.dtype} has moved them by {exported.rounding:.1e} (1 - cosine).")
    for remark in exported.remarks:
        print(f"- {remark}")


def _export_openvino(arguments: argparse.Namespace, checkpoint: Path) -> None:
    from .openvino.export import export_openvino

    exported = export_openvino(checkpoint, arguments.folder, read_options(arguments, ExportOptions))
    print(f"Exported to {exported.folder} in {exported.dtype}: {exported.mebibytes:.1f} MiB of graph.")
    print(
        'Loaded again by sentence-transformers with `backend="openvino"`: the embeddings of the sample texts have a '
        f"cosine of at least {exported.lowest_cosine:.6f} with the checkpoint's."
    )
    for score in exported.scores:
        print(f"- nDCG@10 of {score.task}: {score.before:.4f} before, {score.after:.4f} after.")


def _export_adapter(arguments: argparse.Namespace, checkpoint: Path) -> None:
    from .adapter import export_adapter
    from .llm2vec import export_llm2vec

    options = {"overwrite": arguments.overwrite, "device": arguments.device}
    if arguments.layout == "adapter":
        remarks = export_adapter(checkpoint, arguments.folder, **options)
    else:
        options |= {"dtype": arguments.dtype, "max_shard_size": arguments.max_shard_size}
        remarks = export_llm2vec(checkpoint, arguments.folder, **options)
    print(f"Exported to {arguments.folder}; loaded again, it embeds the sample texts as the checkpoint does.")
    for remark in remarks:
        print(f"- {remark}")


def refuse_unused(arguments: argparse.Namespace) -> None:
    """Options that would have no effect on the chosen layout."""
    layout = arguments.layout
    bare = layout in ("adapter", "llm2vec")  # no place for what sentence-transformers is told
    unused = {
        "--server": layout != "sentence-transformers" and arguments.server is not None,
        "--query-task": bare and arguments.query_task is not None,
        "--dimensions": bare and arguments.dimensions is not None,
        "--dequantize": bare and arguments.dequantize,
        "--dtype": layout == "adapter" and arguments.dtype != "auto",
        "--check-tasks": layout != "openvino" and arguments.check_tasks is not None,
        "--max-shard-size": layout == "openvino" and arguments.max_shard_size != ExportOptions.max_shard_size,
    }
    for option, is_set in unused.items():
        if is_set:
            raise ValueError(f"`{option}` has no effect on `--layout {layout}`: leave it out.")
