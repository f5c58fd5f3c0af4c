"""The verb ``demo``: every verb of the pipeline once, on small input, in one folder to look at afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pyramid import files
from pyramid.config import dump_yaml, resolve
from pyramid.corpora.scan import ScanResult, scan
from pyramid.errors import ConfigError
from pyramid.jobs import Quarantined
from pyramid.labels.engine import LabelResult, label
from pyramid.mixture.verbs import mix_show, mix_simulate
from pyramid.nn.checkpoint import read_model_config
from pyramid.shards.pack import PackResult, pack
from pyramid.shards.reader import ShardSet
from pyramid.shards.verify import verify
from pyramid.table import format_table
from pyramid.tour.config import DemoConfig
from pyramid.tour.journal import Journal
from pyramid.tour.mixture import HEAD, MIXTURE
from pyramid.tour.result import DemoResult, together

PARTS = ("human", "generated", "robot")
"""The demo's corpora, from base to top of the pyramid."""
ROBOT = "metaworld"
_STAGES = 11


def demo(
    *,
    out: str = "demo",
    videos: str | None = None,
    config: DemoConfig | str | Mapping[str, Any] | None = None,
    workers: int = 2,
    resume: bool = True,
    **options: Any,
) -> DemoResult:
    """Runs the whole way once: videos, shards, latent actions, pseudo-actions, mixture, policy, ONNX.

    What an earlier run in the same folder has done is found and reused.

    Args:
        out: folder for everything.
        videos: a folder of your own videos for the base of the pyramid, instead of simulated hand videos.
        config: a YAML file or options.
        workers: processes for packing and labelling.
        resume: reuse what is done; False does all again.
        options: fields of `DemoConfig`.

    Raises:
        DataError: the folder of videos is missing, empty or holds no video.
        OutputError: the output folder cannot be written.
        MissingDependencyError: the simulator or EGL is missing; the message names the package.
    """
    cfg = resolve(DemoConfig, config, **options)
    if files.is_remote(out):
        raise ConfigError("the demo writes to a local folder; the verbs by themselves also write to s3://")
    if videos is not None:
        scan("folder", videos, dry_run=True)  # Refuse a bad folder before anything is made.
    return _Demo(files.make_dirs(out), videos, cfg, workers, resume).run()


class _Demo:
    """The stages, each reading what the one before wrote."""

    def __init__(self, out: str, videos: str | None, config: DemoConfig, workers: int, resume: bool) -> None:
        self.out, self.videos, self.config, self.workers, self.resume = out, videos, config, workers, resume
        self.journal = Journal(out, _STAGES)
        self.aside: list[Quarantined] = []

    def place(self, *parts: str) -> str:
        return files.join(self.out, *parts)

    def shards(self, part: str) -> str:
        return self.place("shards", part)

    def model(self, kind: str) -> str:
        return self.place("models", kind)

    def run(self) -> DemoResult:
        start = time.monotonic()
        self._make_input()
        scans, packs = self._scan(), self._pack()
        self._train_labelers()
        evaluations = self._evaluate()
        labels = self._label()
        proof = self._mix()
        self._train_policy()
        exported = self._export()
        timed, action = self._answer()
        result = DemoResult(
            scan=scans,
            pack=packs,
            label=labels,
            **evaluations,
            mix_simulate=proof,
            export=exported,
            bench=timed,
            action=action,
            seconds=round(time.monotonic() - start, 1),
            out=self.out,
            items=self.aside,
        )
        files.write_json(self.place("demo.json"), result)
        return result

    def _make_input(self) -> None:
        from pyramid.sim import make_dataset

        explanation = "scripted policies: hand look without actions, generated look, robot episodes with actions"
        self.journal.stage("Simulate input", explanation)
        sim = self.config.sim if self.videos is None else replace(self.config.sim, n_hand=0)
        self.journal.show(make_dataset(self.place("data"), sim, resume=self.resume))

    def _scan(self) -> dict[str, Any]:
        self.journal.stage("Scan", "from folders of videos to clip manifests (pyramid scan)")
        human = self.videos if self.videos is not None else self.place("data", "hand")
        roots = {"human": ("folder", human), "generated": ("generated", self.place("data", "generated"))}
        roots["robot"] = ("lerobot", self.place("data", "robot"))
        found: dict[str, ScanResult] = {}
        for part, (kind, root) in roots.items():
            # The generated clips show the robot too, which is why an inverse dynamics model can label them.
            body: dict[str, Any] = {} if part == "human" else {"embodiment": ROBOT}
            found[part] = scan(kind, root, out=self.place("clips", f"{part}.parquet"), val_share=0.2, **body)
            self.aside += found[part].items
        tiers = {"human": "base", "generated": "middle", "robot": "top"}
        rows = [[tiers[p], p, r.clips, f"{r.hours * 60:.2f}", sum(r.skipped.values())] for p, r in found.items()]
        self.journal.show(format_table(["tier", "corpus", "clips", "minutes", "refused"], rows))
        self._show_items([item for r in found.values() for item in r.items])
        return together(found, ("clips", "hours"), ("skipped",))

    def _pack(self) -> dict[str, Any]:
        self.journal.stage("Pack", "decode once, score, resize, write webdataset shards (pyramid pack, pyramid verify)")
        found: dict[str, PackResult] = {}
        for part in PARTS:
            found[part] = pack(
                self.place("clips", f"{part}.parquet"),
                out=self.shards(part),
                workers=self.workers,
                resume=self.resume,
                size_px=self.config.size_px,
                frames_per_shard=self.config.frames_per_shard,
            )
            self.aside += found[part].items
        rows = [[p, r.clips, r.frames, r.shards, r.bytes, sum(r.quarantined.values())] for p, r in found.items()]
        self.journal.show(format_table(["corpus", "clips", "frames", "shards", "bytes", "set aside"], rows))
        self._show_items([item for r in found.values() for item in r.items])
        self._show_oddities()
        for part in PARTS:
            self.journal.show(f"{part}: {verify(self.shards(part))}")
        return together(found, ("clips", "frames", "shards", "bytes", "seconds", "frames_per_s"), ("quarantined",))

    def _show_items(self, items: list[Quarantined]) -> None:
        if items:
            self.journal.show(format_table(["refused", "why"], [[item.reason, item.detail] for item in items]))

    def _show_oddities(self) -> None:
        """Names the clips whose pictures are odd; simulated ones are all alike and only counted."""
        rows = []
        for part in PARTS if self.videos is None else PARTS[:1]:
            rows += [[r["clip_id"], "; ".join(r["notes"])] for r in ShardSet.open(self.shards(part)).rows if r["notes"]]
        if len(rows) > 12:
            self.journal.show(f"{len(rows)} clips are odd in some way; the first of them:")
        if rows:
            self.journal.show(format_table(["odd clip", "what its pictures say"], rows[:12]))

    def _train_labelers(self) -> None:
        from idm.train import train_idm
        from lam.train import train_lam

        every = [self.shards(part) for part in PARTS]
        self.journal.stage(
            "Train the latent-action model", "what changed between two frames, as 4 tokens (pyramid train lam)"
        )
        steps: dict[str, Any] = {"trainer.max_steps": self.config.lam_steps}
        self.journal.show(train_lam(every, out=self.model("lam"), resume=self.resume, **steps))
        self.journal.stage(
            "Train the inverse dynamics model", "which action led from one frame to another (pyramid train idm)"
        )
        steps = {"trainer.max_steps": self.config.idm_steps}
        self.journal.show(train_idm(self.shards("robot"), out=self.model("idm"), resume=self.resume, **steps))

    def _evaluate(self) -> dict[str, dict[str, Any]]:
        from idm.evaluate import evaluate_idm
        from lam.evaluate import evaluate_lam

        self.journal.stage("Evaluate both", "on held-out clips (pyramid evaluate lam, pyramid evaluate idm)")
        every = [self.shards(part) for part in PARTS]
        inputs = [ShardSet.open(folder).digest for folder in every]
        lam, idm = self._weights("lam"), self._weights("idm")
        pairs = self.config.evaluate_pairs
        return {
            "evaluate_lam": self.journal.kept(
                "evaluate_lam",
                [lam, *inputs, str(pairs)],
                lambda: evaluate_lam(every, model=self.model("lam"), n_pairs=pairs),
            ),
            "evaluate_idm": self.journal.kept(
                "evaluate_idm", [idm, *inputs], lambda: evaluate_idm(self.shards("robot"), model=self.model("idm"))
            ),
        }

    def _weights(self, kind: str) -> str:
        return str(read_model_config(self.model(kind), kind)["weights_sha256"])

    def _label(self) -> dict[str, Any]:
        self.journal.stage("Label", "latent actions and pseudo-actions, one Parquet table per shard (pyramid label)")
        found: dict[str, LabelResult] = {}
        for part, name in (("human", "lam"), ("generated", "lam"), ("generated", "idm")):
            # One process: starting another takes longer than these few labels.
            run = label(self.shards(part), labeler=name, model=self.model(name), resume=self.resume)
            found[f"{part}/{name}"] = run
            self.aside += run.items
        rows = [[p, r.clips, r.rows, r.shards, sum(r.quarantined.values())] for p, r in found.items()]
        self.journal.show(format_table(["corpus/labeler", "clips", "labels", "tables", "set aside"], rows))
        self._show_items([item for r in found.values() for item in r.items])
        numbers = ("clips", "rows", "shards", "skipped_done", "seconds", "frames_per_s")
        return together(found, numbers, ("quarantined",))

    def _mix(self) -> dict[str, Any]:
        self.journal.stage("Mix", "three tiers, exact shares at every prefix (pyramid mix show, pyramid mix simulate)")
        path = self.place("mixture.yaml")
        files.write_text(path, HEAD + dump_yaml(MIXTURE))
        self.journal.show(mix_show(path))
        proof = mix_simulate(path, draws=self.config.draws)
        self.journal.show(proof)
        return dict(vars(proof))

    def _train_policy(self) -> None:
        from vla.train import train_vla

        self.journal.stage(
            "Train the policy", "vision-language model and flow-matching action head (pyramid train vla)"
        )
        steps: dict[str, Any] = {"trainer.max_steps": self.config.vla_steps}
        mixture = self.place("mixture.yaml")
        self.journal.show(
            train_vla(mixture, out=self.model("vla"), config=self.config.policy, resume=self.resume, **steps)
        )

    def _export(self) -> dict[str, Any]:
        from vla.deploy.export import export

        self.journal.stage("Export", "System 2 and System 1 as ONNX, checked against PyTorch (pyramid export)")
        return self.journal.kept(
            "export",
            [self._weights("vla")],
            lambda: export(self.model("vla"), out=self.place("deploy"), embodiment=ROBOT),
        )

    def _answer(self) -> tuple[dict[str, Any], list[list[float]]]:
        from vla.deploy.bench import bench
        from vla.deploy.runtime import PolicyRuntime

        self.journal.stage("Answer", "one held-out observation in, one action chunk out, without torch (pyramid bench)")
        runtime = PolicyRuntime.load(self.place("deploy"))
        shards = ShardSet.open(self.shards("robot"))
        sample = shards.read(next(i for i, row in enumerate(shards.rows) if row["split"] == "val"))
        state, true = sample.state, sample.action
        if state is None or true is None:
            raise ConfigError("the robot episodes of the demo have lost their numbers; start over with --no-resume")
        observation = {"images": sample.frames([0]), "text": sample.meta["text"], "state": state[0]}
        action = runtime.act(observation)
        self.journal.show(f"'{sample.meta['text']}', state {_numbers(state[0])}:")
        rows = [[i, _numbers(row), _numbers(true[i])] for i, row in enumerate(action)]
        self.journal.show(format_table(["step", "policy's action", "demonstrated"], rows))
        timed = bench(self.place("deploy"), runs=self.config.bench_runs)
        self.journal.show(timed)
        return dict(vars(timed)), [[float(v) for v in row] for row in action]


def _numbers(row: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    return " ".join(f"{value:+.2f}" for value in row)
