"""Runs the prepare stage: tokenises parts, plans rows, writes shards and manifests; keeps what is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.models.bos import bos_text, chosen_bos
from pipelines.models.tokenizers import load_tokenizer, pinned, tokenizer_hash
from pipelines.prepare.corpus import Corpus, SplitPlan
from pipelines.prepare.execute import map_tasks
from pipelines.prepare.parts import (
    PartSummary,
    part_file,
    shard_file,
    work_folder,
    write_array,
)
from pipelines.prepare.read import plan_parts
from pipelines.prepare.shards import (
    MANIFEST,
    Manifest,
    ShardEntry,
    Split,
    TokenizerEntry,
    read_manifest,
    split_folder,
    write_manifest,
)
from pipelines.prepare.sources import files_of, label_of, passed_over, passed_over_text, printable
from pipelines.prepare.tokenize import TokenizeTask, tokenize_part
from pipelines.prepare.write import ShardTask, write_planned_shard
from pipelines.recipe.keys.prepare import PathSource, PrepareKeys
from pipelines.system import storage
from pipelines.system.storage import file_size

REJECTS = "rejects.jsonl"
_PARTS = 1024  # the target number, for a corpus large enough
_SMALLEST_PART, _LARGEST_PART = 1 << 20, 256 << 20  # bytes
_VERSION = 1  # of the format of unfinished work; raise it to have old files made again


@dataclass(frozen=True)
class _Job:
    """One run of the stage; `key` says what all its work is made of."""

    keys: PrepareKeys
    context: Context
    tokenizer: TokenizerEntry
    definition: str
    key: str

    @property
    def work(self) -> str:
        return work_folder(self.context.output)

    def folder(self, split: Split) -> str:
        return split_folder(self.context.output, split)


@dataclass(frozen=True)
class _PlannedSplit:
    split: Split
    plan: SplitPlan
    tasks: Sequence[ShardTask]


def run(keys: PrepareKeys, context: Context) -> dict[str, Any]:
    """Prepares the shards in `context.output`; work that an interrupted run finished is kept.

    Raises:
        EspanError: no document is usable, too few for one row, or a file cannot be read to its end.
    """
    job = _job(keys, context)
    if not _finished(job):
        corpus = _tokenize(job)
        _write_rejects(job, corpus)
        _refuse_useless_sources(job, corpus)
        splits: tuple[Split, ...] = ("holdout", "train") if keys.holdout else ("train",)
        documents = corpus.splits(keys.holdout, context.seed)
        planned = [_plan(job, corpus, split, documents[split]) for split in splits]
        entries = _write_shards(job, [task for each in planned for task in each.tasks])
        for each in planned:  # `train` comes last: its manifest says that all is done
            write_manifest(job.folder(each.split), _manifest(job, each, entries))
    storage.remove_folder(job.work)
    return _result(job)


def _job(stage: PrepareKeys, context: Context) -> _Job:
    tokenizer = load_tokenizer(stage.tokenizer)
    if stage.end_of_document and tokenizer.eos_token_id is None:
        what = f"tokenizer '{stage.tokenizer}' has no end-of-document token"
        raise EspanError(f"{what}; set end_of_document to false, or eos_token in its tokenizer_config.json")
    entry = TokenizerEntry(
        reference=pinned(stage.tokenizer),
        sha256=tokenizer_hash(tokenizer),
        vocabulary_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=chosen_bos(tokenizer, stage.bos, stage.tokenizer),
    )
    if beginning := bos_text(tokenizer, entry.bos_token_id, stage.bos):
        context.progress.message(f"{context.name}: documents begin {beginning}")
    keys = stage.written.model_dump(mode="json", exclude={"bos"})
    made_of = [_VERSION, keys, context.name, context.seed, entry.sha256]
    key = _hash(made_of if entry.bos_token_id is None else [*made_of, entry.bos_token_id])
    return _Job(stage, context, entry, tokenizer.backend_tokenizer.to_str(), key)


def _tokenize(job: _Job) -> Corpus:
    sources = job.keys.sources
    for ordinal, over in passed_over(job.keys).items():
        label = label_of(sources[ordinal])
        job.context.progress.message(f"{job.context.name}: {label}: passed over: {passed_over_text(over)}")
    files = [file for source in sources if isinstance(source, PathSource) for file in files_of(source)]
    part_bytes = sum(map(file_size, files)) // _PARTS
    parts = plan_parts(sources, min(max(part_bytes, _SMALLEST_PART), _LARGEST_PART))
    tasks = [
        TokenizeTask(
            index=index,
            key=_hash([job.key, asdict(part)]),
            part=part,
            source=sources[part.source],
            seed=_source_seed(job, part.source),
            work=job.work,
        )
        for index, part in enumerate(parts)
    ]
    end = job.tokenizer.eos_token_id if job.keys.end_of_document else None
    function = partial(
        tokenize_part, definition=job.definition, end_of_document=end, bos=job.tokenizer.bos_token_id
    )
    summaries: dict[int, PartSummary] = {}
    documents = tokens = 0
    with job.context.progress.task(f"{job.context.name}: tokenise", len(tasks), "parts") as progress:
        for index, summary in map_tasks(function, tasks):
            summaries[index] = summary
            documents, tokens = documents + summary.documents, tokens + summary.tokens
            progress.advance(documents=documents, tokens=tokens)
    return Corpus.read(sources, parts, [summaries[index] for index in range(len(parts))], job.work)


def _write_rejects(job: _Job, corpus: Corpus) -> None:
    """Gathers the parts' rejects, in the corpus' order, where there are any."""
    rejecting = [index for index, summary in enumerate(corpus.summaries) if summary.rejected]
    if rejecting:
        lines = b"".join(storage.read_bytes(part_file(job.work, index, "rejects")) for index in rejecting)
        storage.write_bytes_atomic(storage.join(job.context.output, REJECTS), lines)


def _refuse_useless_sources(job: _Job, corpus: Corpus) -> None:
    for ordinal, source in enumerate(corpus.sources):
        if not corpus.tokens(ordinal):
            what = f"source '{label_of(source)}' has no usable document"
            rejects = storage.join(job.context.output, REJECTS)
            raise EspanError(f"{what}: {corpus.rejected(ordinal):,} were rejected, {rejects} says why")


def _plan(job: _Job, corpus: Corpus, split: Split, documents: list[np.ndarray]) -> _PlannedSplit:
    """Plans the rows of a split, and leaves each shard's plan in the work folder."""
    stage = job.keys
    plan = SplitPlan(corpus, documents)
    tasks = []
    for index, lines in enumerate(plan.shards(stage.sequence_length, stage.packing, stage.shard_rows)):
        write_array(shard_file(job.work, split, index, "plan"), lines)
        task = ShardTask(
            split=split,
            index=index,
            key=_hash([job.key, hashlib.sha256(lines.tobytes()).hexdigest()]),
            folder=job.folder(split),
            work=job.work,
            sequence_length=stage.sequence_length,
            packing=stage.packing,
        )
        tasks.append(task)
    if not tasks:
        drawn = sum(entry.tokens - entry.left_out_tokens for entry in plan.entries())
        what = f"{drawn:,} tokens, too few for one row of {stage.sequence_length:,}"
        if split == "holdout":
            raise EspanError(f"the held-out documents have {what}; hold out more, or add documents")
        raise EspanError(f"the corpus has {what}; add documents or shorten sequence_length")
    return _PlannedSplit(split, plan, tasks)


def _write_shards(job: _Job, tasks: Sequence[ShardTask]) -> dict[ShardTask, ShardEntry]:
    entries: dict[ShardTask, ShardEntry] = {}
    with job.context.progress.task(f"{job.context.name}: write", len(tasks), "shards") as progress:
        for index, entry in map_tasks(write_planned_shard, tasks):
            entries[tasks[index]] = entry
            progress.advance()
    return entries


def _manifest(job: _Job, planned: _PlannedSplit, entries: dict[ShardTask, ShardEntry]) -> Manifest:
    return Manifest(
        split=planned.split,
        packing=job.keys.packing,
        sequence_length=job.keys.sequence_length,
        rows=planned.plan.rows,
        tokens=planned.plan.rows * job.keys.sequence_length,
        shards=tuple(entries[task] for task in planned.tasks),
        tokenizer=job.tokenizer,
        sources=planned.plan.entries(),
        seed=job.context.seed,
        recipe_hash=job.key,
    )


def _finished(job: _Job) -> bool:
    """Says whether an earlier run wrote the last manifest and was stopped before it could say so."""
    output = job.context.output
    return storage.exists(storage.join(output, MANIFEST)) and read_manifest(output).recipe_hash == job.key


def _result(job: _Job) -> dict[str, Any]:
    manifest = read_manifest(job.context.output)
    held_out = read_manifest(job.folder("holdout")).rows if job.keys.holdout else 0
    rejected = sum(source.rejected_documents for source in manifest.sources)
    left_out = {printable(one.place): one.reason for over in passed_over(job.keys).values() for one in over}
    headline = f"{manifest.rows:,} rows of {manifest.sequence_length:,} tokens"
    headline += f", {held_out:,} held out" if held_out else ""
    headline += f", {rejected:,} documents rejected" if rejected else ""
    headline += f", passed over: {len(left_out):,}" if left_out else ""
    return {
        "headline": headline,
        "rows": manifest.rows,
        "tokens": manifest.tokens,
        "holdout_rows": held_out,
        "sequence_length": manifest.sequence_length,
        "documents": sum(source.documents for source in manifest.sources),
        "rejected_documents": rejected,
        "passed_over": left_out,
        "left_out_tokens": sum(source.left_out_tokens for source in manifest.sources),
        "dropped_tokens": sum(source.dropped_tokens for source in manifest.sources),
    }


def _source_seed(job: _Job, source: int) -> int:
    """Returns a separate seed for each source of each stage, so that generated documents never repeat."""
    return int(_hash([job.context.seed, job.context.name, source])[:15], 16)


def _hash(value: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
