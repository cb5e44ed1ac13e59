"""Sections `report` and `runtime` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.sections.kinds import Count, Positive, Section


class ReportParams(Section):
    """The report's pictures."""

    title: str = "SimCLRv2: what were the unlabelled images worth?"
    map_images: Annotated[int, Field(ge=10, description="points on the map of embeddings")] = 2000
    neighbour_queries: Count = 8
    view_images: Count = 8
    seed: int = 0


class RuntimeParams(Section):
    """Where it runs; nothing here may change a result beyond float rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Annotated[
        Count, Field(description="pretraining processes on each host; 1 or a divisor of the batch")
    ] = 1
    hosts: Annotated[
        Count, Field(description="that pretrain together in one shared folder; see many_hosts.md")
    ] = 1
    launcher: Annotated[
        Literal["rendezvous", "slurm"],
        Field(description="of several hosts: the same command on each of them, or srun"),
    ] = "rendezvous"
    meet_at: Annotated[
        str | None,
        Field(
            pattern=r"^\S+:\d+$",
            description="host:port of one of the hosts, where those of a rendezvous meet",
        ),
    ] = None
    slurm_options: Annotated[
        list[str], Field(description="more words for srun, like --gpus-per-node=8")
    ] = []
    threads: Annotated[int, Field(ge=0, description="CPU threads; 0: all cores")] = 0
    trainings_at_once: Annotated[
        int,
        Field(ge=0, description="small trainings of a stage, each on one core; 0: one per core"),
    ] = 1
    micro_batch: Annotated[
        Count | Literal["auto"] | None,
        Field(
            description="pretraining images of a process that go through the network at once, in "
            "multiples of pretrain.batch_norm_images; auto: as many as fit on the GPU; null: all"
        ),
    ] = None
    recompute: Annotated[
        Literal["none", "groups", "blocks"],
        Field(description="pretraining activations computed again backwards instead of kept"),
    ] = "none"
    channels_last: Annotated[
        bool | Literal["auto"], Field(description="memory layout; auto: true")
    ] = "auto"
    compile: Annotated[
        Literal["auto", "none", "default", "reduce-overhead", "max-autotune"],
        Field(description="torch.compile's mode for what is trained; auto: none"),
    ] = "auto"
    fused_optimizer: Annotated[
        bool | Literal["auto"], Field(description="of adamw; auto: on a GPU")
    ] = "auto"
    views_on: Annotated[
        Literal["auto", "cpu", "gpu"],
        Field(description="where training's views are made; auto: where it runs"),
    ] = "auto"
    loader_threads: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=0, le=64)],
        Field(
            description="batches made at once, ahead of the step; 0: none is made ahead; auto: "
            "2 for a GPU, else 1"
        ),
    ] = "auto"
    save_every_seconds: Positive = 60.0
    log_every_steps: Count = 50
    tensorboard: Annotated[
        str | None,
        Field(min_length=1, description="folder of TensorBoard's event files; null: none"),
    ] = None
    shard_workers: Annotated[
        int, Field(ge=0, description="processes of the stage shard; 0: a process per core")
    ] = 0
    dask_scheduler: Annotated[
        str | None,
        Field(description="tcp://host:8786 of a Dask cluster for the stage shard; null: this host"),
    ] = None
    cache_folder: Annotated[
        str, Field(min_length=1, description="where shards of data.shards_at are kept")
    ] = "data/cache"
    cache_gigabytes: Annotated[Positive, Field(description="that they may take on disk")] = 50.0

    @property
    def world_size(self) -> int:
        """Processes that pretrain together, over all hosts."""
        return self.processes * self.hosts

    @model_validator(mode="after")
    def _what_is_compiled_is_not_recomputed(self) -> Self:
        if self.compile not in {"auto", "none"} and self.recompute != "none":
            raise ValueError(
                f"compile: {self.compile} and recompute: {self.recompute} don't go together; "
                "the compiler chooses what to recompute"
            )
        return self

    @model_validator(mode="after")
    def _hosts_know_where_to_meet(self) -> Self:
        if self.hosts > 1 and self.launcher == "rendezvous" and self.meet_at is None:
            raise ValueError(
                f"hosts is {self.hosts} and launcher rendezvous, so meet_at must name one of them "
                "and a port, like host-0:29500"
            )
        return self
