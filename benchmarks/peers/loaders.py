"""The loaders of the comparison, each as its own documentation says; run as a program in the environment of one.

``python loaders.py convert NAME SHARDS OUT`` brings shards into the loader's own format; ``python loaders.py run NAME``
reads a task as JSON from standard input and prints the measurement. All decode with the same function.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from task import SHUFFLE, Expanded, Task, expand, measure


def ours(task: Task) -> Any:
    from pyramid.mixture.batch import open_mixture
    from pyramid.mixture.loader import MixtureLoader
    from pyramid.mixture.spec import MixtureSpec, SourceSpec, TierSpec

    sources = {
        f"s{i}": SourceSpec(shards=folder, use="action", weight=weight)
        for i, (folder, weight) in enumerate(zip(task.folders, task.weights, strict=True))
    }
    spec = MixtureSpec(
        tiers={"top": TierSpec(weight=1.0, sources=sources)},
        horizon=task.horizon,
        shuffle_frames=SHUFFLE,
        shard_cache_mb=4096,
    )
    stream = open_mixture(spec, batch_size=task.batch_size, image_size=task.size_px)
    return MixtureLoader(stream, batch_size=task.batch_size, workers=task.workers)


def webdataset(task: Task) -> Any:
    import webdataset as wds
    from torch.utils.data import DataLoader

    if task.folders[0].startswith("s3:"):
        import s3fs

        # Made where it is used: s3fs keeps one for each process, and none may be taken through a fork.
        wds.gopen_schemes["s3"] = lambda url, *_, **__: s3fs.S3FileSystem().open(url, "rb", block_size=8 * 2**20)

    def samples(clips: Any) -> Iterator[dict[str, Any]]:
        for clip in clips:
            yield from expand(clip["mp4"], clip["action.npy"], task.horizon)

    sources = []
    for folder in task.folders:
        urls = [f"{folder}/{name}" for name in json.loads(os.environ["SHARDS"])]
        clips = wds.WebDataset(urls, resampled=True, shardshuffle=False)
        sources.append(clips.compose(samples).shuffle(SHUFFLE, initial=SHUFFLE))
    mixed = wds.RandomMix(sources, task.weights)
    return DataLoader(mixed, batch_size=task.batch_size, num_workers=task.workers)


def streaming(task: Task) -> Any:
    from streaming import Stream, StreamingDataset
    from torch.utils.data import DataLoader

    streams = []
    for i, (folder, weight) in enumerate(zip(task.folders, task.weights, strict=True)):
        remote = {"remote": folder, "local": f"{task.scratch}/{i}"} if folder.startswith("s3:") else {"local": folder}
        streams.append(Stream(**remote, proportion=weight))
    clips = StreamingDataset(streams=streams, shuffle=True, batch_size=task.batch_size, num_canonical_nodes=1)
    return DataLoader(Expanded(clips, task.horizon), batch_size=task.batch_size, num_workers=task.workers)


def litdata(task: Task) -> Any:
    from litdata import CombinedStreamingDataset, StreamingDataset
    from torch.utils.data import DataLoader

    options: dict[str, Any] = {}
    if task.folders[0].startswith("s3:"):
        from litdata.streaming import downloader

        # Its store refuses a server without TLS, and no option of its own says otherwise.
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
        options["storage_options"] = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    sources = [
        StreamingDataset(folder, cache_dir=f"{task.scratch}/{i}", shuffle=True, **options)
        for i, folder in enumerate(task.folders)
    ]
    clips = CombinedStreamingDataset(sources, weights=task.weights, iterate_over_all=False)
    return DataLoader(Expanded(clips, task.horizon), batch_size=task.batch_size, num_workers=task.workers)


def store_profile(scratch: str) -> str:
    """Writes the configuration from which Energon's storage client knows the S3 server."""
    options = {"base_path": "bench", "region_name": "us-east-1", "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    keys = {"access_key": os.environ["AWS_ACCESS_KEY_ID"], "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
    profile = {
        "storage_provider": {"type": "s3", "options": options},
        "credentials_provider": {"type": "S3Credentials", "options": keys},
    }
    path = Path(scratch, "msc.json")
    path.write_text(json.dumps({"profiles": {"bench": profile}}))
    return str(path)


def energon(task: Task) -> Any:
    if task.folders[0].startswith("s3:"):
        os.environ["MSC_CONFIG"] = store_profile(task.scratch)
    from megatron import energon as en

    class Encoder(en.DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None
        cookers = [en.Cooker(en.stateless(lambda sample: sample))]  # noqa: RUF012

        @en.stateless  # type: ignore[untyped-decorator]
        def encode_sample(self, sample: Any) -> Iterator[Any]:
            yield from expand(sample["mp4"], sample["action.npy"], task.horizon)

    parts = "".join(
        f"      - {{weight: {weight}, path: {folder.replace('s3://bench', 'msc://bench')}}}\n"
        for folder, weight in zip(task.folders, task.weights, strict=True)
    )
    blend = "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n" + parts
    Path(task.scratch, "blend.yaml").write_text(blend)
    config = en.WorkerConfig(rank=0, world_size=1, num_workers=task.workers)
    # Its buffer holds clips before they are decoded; nothing mixes their frames after.
    data = en.get_train_dataset(
        Path(task.scratch, "blend.yaml"),
        worker_config=config,
        batch_size=task.batch_size,
        shuffle_buffer_size=16,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
    )
    return en.get_loader(data)


LOADERS = {f.__name__: f for f in (ours, webdataset, streaming, litdata, energon)}


def convert(name: str, shards: str, out: str) -> None:
    """Writes the clips of a shard folder in a loader's own format."""
    from pyramid.shards.layout import dump_array
    from pyramid.shards.reader import ShardSet

    opened = ShardSet.open(shards)
    samples = (sample for shard in opened.shards for sample in opened.iter_shard(shard))
    clips = ({"mp4": sample.video, "action": dump_array(sample.action)} for sample in samples)
    if name == "streaming":
        from streaming import MDSWriter

        with MDSWriter(out=out, columns={"mp4": "bytes", "action": "bytes"}, size_limit=2**20) as writer:
            for clip in clips:
                writer.write(clip)
    elif name == "litdata":
        from litdata.streaming.writer import BinaryWriter

        os.makedirs(out, exist_ok=True)
        chunks = BinaryWriter(out, chunk_bytes=2**20)
        for i, clip in enumerate(clips):
            chunks.add_item(i, clip)
        chunks.done()
        chunks.merge(1)
    elif name == "energon":
        from megatron.energon.epathlib import EPath
        from megatron.energon.flavors import BaseWebdatasetFactory

        os.makedirs(out, exist_ok=True)
        for shard in opened.shards:
            os.link(Path(shards, shard), Path(out, shard))
        BaseWebdatasetFactory.prepare_dataset(
            EPath(out), opened.shards, split_parts_ratio=[("train", 1.0)], workers=1, progress_fn=lambda x, _: x
        )
        Path(out, ".nv-meta", "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(*sys.argv[2:])
    else:
        asked = Task(**json.loads(sys.stdin.read()))
        print(json.dumps(measure(LOADERS[sys.argv[2]](asked), asked)))
